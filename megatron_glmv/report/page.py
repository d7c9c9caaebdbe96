"""`glmv report`: one HTML page of one run or several, which asks nothing of any server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path

from megatron_glmv.report.html import Markup, join, tag
from megatron_glmv.report.record import RunRecord, read_run
from megatron_glmv.report.sections import SECTIONS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses every request that a page made of others' texts might try."""


def main(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page of these runs and returns its path.

    Without `out` it is RUN_DIR/report.html of the first run. Raises DataError when a directory is not there;
    anything missing inside one is said on the page.
    """
    runs = [read_run(path) for path in run_dirs]
    target = out or run_dirs[0] / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    made = datetime.now().astimezone()
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(render(runs, f"{made:%Y-%m-%d %H:%M %Z}"), encoding="utf-8")
    temporary.replace(target)
    return target


def render(runs: Sequence[RunRecord], made: str) -> str:
    """The whole document. `made`: when, as it will be written under the title."""
    bodies = [(section, section.render(runs)) for section in SECTIONS]
    shown = [(section, body) for section, body in bodies if body is not None]
    title = ", ".join(run.name for run in runs)
    experiments = sorted({str(run.option("experiment")) for run in runs if run.option("experiment")})
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{title} - run report"),
        tag("style", _asset("page.css")),
    )
    links = [tag("a", section.title, href=f"#{section.anchor}") for section, _ in shown]
    body = tag(
        "body",
        tag("header", tag("h1", ", ".join(experiments) or title), tag("p", f"Run report, {made}"), tag("nav", links)),
        tag("main", [_section(section.title, section.anchor, content) for section, content in shown]),
        tag("script", _asset("page.js")),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _section(title: str, anchor: str, content: Markup) -> Markup:
    return tag("section", tag("h2", title), content, id=anchor)


def _asset(name: str) -> Markup:
    return join([Markup(resources.files("megatron_glmv.report").joinpath("assets", name).read_text(encoding="utf-8"))])
