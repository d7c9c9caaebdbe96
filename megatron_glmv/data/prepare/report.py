"""What each step removed: counts as JSON and as a table, and a ledger with one line for each removed sample."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from megatron_glmv.data.prepare import chain, write
from megatron_glmv.data.prepare.chain import Part
from megatron_glmv.data.prepare.recaption import CACHE, Recaption
from megatron_glmv.data.prepare.step import REMOVED
from megatron_glmv.data.prepare.work import write_whole
from megatron_glmv.data.types import Json

REPORT, LEDGER = "report.json", "removed.jsonl"
UNKNOWN = "(unreadable)"
"""Domain of samples whose conversation could not be read."""


def collect(parts: Sequence[Part]) -> Json:
    """Figures of all results, with the ledger's lines under `ledger`. Raises DataError while one is missing."""
    options = parts[0].options
    steps: list[Json] = []
    ledger: list[Json] = []
    for step in chain.judges():
        if reason := step.skipped(options):
            steps.append({"step": step.name, "skipped": reason})
            continue
        entered, reasons = 0, Counter[str]()
        for part in parts:
            for line in part.lines(step):
                entered += 1
                if REMOVED in line:
                    reasons[line[REMOVED]] += 1
                    ledger.append(_ledger_line(part, step.name, line))
        steps.append(
            {
                "step": step.name,
                "entered": entered,
                "removed": reasons.total(),
                "reasons": dict(sorted(reasons.items())),
            }
        )
    steps.append(_recaptioned(parts))
    order = {part.shard.name: n for n, part in enumerate(parts)}
    ledger.sort(key=lambda line: (order[line["shard"]], line["key"]))
    before, after = _domains(parts)
    return {
        "samples_in": before.total(),
        "samples_out": after.total(),
        "domains": {name: {"in": before[name], "out": after[name]} for name in sorted(before)},
        "bytes_in": sum(part.shard.stat().st_size for part in parts),
        "steps": steps,
        "ledger": ledger,
    }


def _ledger_line(part: Part, step: str, line: Json) -> Json:
    detail = {"detail": line["detail"]} if "detail" in line else {}
    return {"key": line["key"], "shard": part.shard.name, "step": step, "reason": line[REMOVED], **detail}


def _recaptioned(parts: Sequence[Part]) -> Json:
    step = Recaption(parts[0].work.directory / CACHE)
    if reason := step.skipped(parts[0].options):
        return {"step": step.name, "skipped": reason}
    identity = step.identity(parts[0].options)
    lines = [line for part in parts for line in part.result(step.name).lines(identity)]
    counts = {name: sum(name in line for line in lines) for name in ("caption", "failed", "unusable")}
    return {"step": step.name, "entered": len(lines), "removed": 0, "reasons": {}, **counts}


def _domains(parts: Sequence[Part]) -> tuple[Counter[str], Counter[str]]:
    before, after = Counter[str](), Counter[str]()
    for part in parts:
        before.update(line.get("domain", UNKNOWN) for line in part.lines(chain.SCAN[0]))
        after.update(str(line["domain"]) for line in part.result(write.NAME).lines(write.IDENTITY))
    return before, after


def save(made: Json, out: Path) -> None:
    """Write `report.json` and `removed.jsonl` into `out`."""
    figures = {name: value for name, value in made.items() if name != "ledger"}
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in made["ledger"])
    write_whole(out / LEDGER, lines.encode("utf-8", "surrogatepass"))
    write_whole(out / REPORT, (json.dumps(figures, indent=1, ensure_ascii=False) + "\n").encode())


def table(figures: Json) -> Table:
    """The figures of `report.json` for a terminal."""
    shown = Table("step", "samples in", "removed", "share", "reasons")
    for row in rows(figures):
        shown.add_row(*row)
    return shown


def rows(figures: Json) -> Iterator[tuple[str, str, str, str, str]]:
    for step in figures["steps"]:
        if "skipped" in step:
            yield step["step"], "", "", "", f"skipped, {step['skipped']}"
            continue
        entered, removed = step["entered"], step["removed"]
        reasons = ", ".join(f"{name} {count}" for name, count in step["reasons"].items())
        if step["step"] == "recaption":
            reasons = f"new captions {step['caption']}, failed {step['failed']}, unusable {step['unusable']}"
        yield step["step"], f"{entered:,}", f"{removed:,}", f"{removed / max(entered, 1):.1%}", reasons
    yield "all", f"{figures['samples_in']:,}", f"{figures['samples_in'] - figures['samples_out']:,}", "", ""
