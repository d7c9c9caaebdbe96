"""`glmv doctor`: what is installed, importable and usable here, what stands in for the rest, and how to get it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_glmv.platform.apex import TE, Choice, foreign, resolve_all
from megatron_glmv.platform.probe import Facts, run
from megatron_glmv.resilience.exit_codes import ExitCode

SLURM_TIMEOUT_S = 5
APEX_PROBES = ("apex.optimizers", "apex.normalization", "amp_C", "fused_weight_gradient_mlp_cuda")


@dataclass(frozen=True)
class Part:
    """Something the stack uses where it is there."""

    name: str
    distributions: tuple[str, ...]
    """Names it may be installed under; empty: it comes with torch or the machine."""
    stands_in: str
    """What is used without it; empty: nothing, it is required."""
    get: str

    @property
    def required(self) -> bool:
        return not self.stands_in


@dataclass(frozen=True)
class Finding:
    name: str
    required: bool
    installed: str
    """Version, or where it is; empty: not installed."""
    importable: bool | None
    """None: nothing to import."""
    usable: bool
    detail: str
    """What it is, or why it cannot be used."""
    stands_in: str
    """What is used instead; empty where it is usable, and for what is required."""
    get: str
    """How to get it; empty where it is usable."""


PARTS = (
    Part("torch", ("torch",), "", "pip install torch, or torch==2.13.0+cpu without a GPU"),
    Part("megatron-core", ("megatron-core",), "", "pip install 'megatron-core>=0.16.1,<0.20'"),
    Part("PyAV", ("av",), "", "pip install av"),
    Part("tokenizers", ("tokenizers",), "", "pip install tokenizers"),
    Part("GPU", (), "CPU processes (platform=cpu)", "a CUDA GPU, its driver, and a torch built for CUDA"),
    Part("NCCL", (), "gloo", "comes with a torch built for CUDA"),
    Part(
        TE,
        ("transformer_engine",),
        "torch layer specs (backend=torch); FP8 emulated (precision.fp8_backend=emulate)",
        "pip install 'megatron-glmv[gpu]', on a machine with CUDA 13, its headers and a compiler",
    ),
    Part(
        "apex", ("apex",), "by feature, see below", "optional, from source: github.com/NVIDIA/apex, or an NGC container"
    ),
    Part(
        "DALI",
        ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
        "Pillow for images, PyAV for video",
        "pip install 'megatron-glmv[dali]'",
    ),
    Part(
        "Slurm", (), "ranks on this machine (glmv train starts them)", "sbatch and scontrol on PATH, and a controller"
    ),
)


def main(as_json: bool = False) -> int:
    """Prints the report and returns the exit code: 0, or 64 where something required is broken."""
    facts = run()
    findings = [_slurm(part) if part.name == "Slurm" else _finding(part, facts) for part in PARTS]
    choices = resolve_all(facts)
    warned = warnings(facts, findings)
    broken = [finding.name for finding in findings if finding.required and not finding.usable]
    if as_json:
        print(json.dumps(report(findings, choices, warned, broken), indent=1))
    elif sys.stdout.isatty():
        _table(findings, choices, warned, broken)
    else:
        _lines(findings, choices, warned, broken)
    return int(ExitCode.CONFIG if broken else ExitCode.OK)


def report(
    findings: list[Finding], choices: tuple[Choice, ...], warned: list[str], broken: list[str]
) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "python": sys.version.split()[0],
        "ok": not broken,
        "broken": broken,
        "parts": [asdict(finding) for finding in findings],
        "features": [asdict(choice) for choice in choices],
        "warnings": warned,
    }


def warnings(facts: Mapping[str, Facts], findings: list[Finding]) -> list[str]:
    """What looks fine, or looks like something else, and is neither."""
    versions = {finding.name: finding.installed for finding in findings}
    found = [foreign(versions["apex"])]
    te, core = facts[TE], facts["megatron-core"]
    if versions[TE] and te.import_error and not core.importable:
        found.append(
            f"Transformer Engine is half installed ({te.import_error}), and megatron-core cannot be imported "
            "beside it: complete it, or pip uninstall transformer_engine"
        )
    if _version("nvidia-dali") and not versions["DALI"]:
        found.append("nvidia-dali on PyPI is a placeholder: pip install 'megatron-glmv[dali]'")
    return [warning for warning in found if warning]


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _finding(part: Part, facts: Mapping[str, Facts]) -> Finding:
    version = _version(*part.distributions)
    found = _apex(facts) if part.name == "apex" else facts[part.name]
    if part.name in ("GPU", "NCCL"):  # nothing of its own to install or import
        return _made(part, found.detail if found.usable else "", None, found)
    missing = not version and not found.importable and "ModuleNotFoundError" in found.import_error
    return _made(part, version, found.importable, Facts("not installed") if missing else found)


def _apex(facts: Mapping[str, Facts]) -> Facts:
    """All of its submodules together: usable where one is."""
    found = {name: facts[name] for name in APEX_PROBES}
    if not any(one.importable for one in found.values()):
        return next(iter(found.values()))
    there = ", ".join(name for name, one in found.items() if one.importable)
    usable = any(one.usable for one in found.values())
    return Facts(detail=there) if usable else Facts(unusable=f"{there}: needs a CUDA GPU")


def _made(part: Part, installed: str, importable: bool | None, found: Facts) -> Finding:
    detail = found.detail if found.usable else found.import_error or found.unusable
    return Finding(
        name=part.name,
        required=part.required,
        installed=installed,
        importable=importable,
        usable=found.usable,
        detail="" if detail == installed else detail,
        stands_in="" if found.usable else part.stands_in,
        get="" if found.usable else part.get,
    )


def _slurm(part: Part) -> Finding:
    """Found, and answering: a controller that is down leaves the commands where they are."""
    missing = [name for name in ("sbatch", "scontrol") if shutil.which(name) is None]
    if missing:
        return _made(part, "", None, Facts(unusable=f"{' and '.join(missing)} not found on PATH"))
    fine, version = _answer("sbatch", "--version")
    if fine:
        answers, said = _answer("scontrol", "ping")
        fine = answers and " UP" in said
        return _made(part, version, None, Facts(detail=said) if fine else Facts(unusable=f"no controller: {said}"))
    return _made(part, str(shutil.which("sbatch")), None, Facts(unusable=f"sbatch fails: {version}"))


def _answer(*command: str) -> tuple[bool, str]:
    """Whether it ended with 0, and the first line it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return False, "no answer" if isinstance(error, subprocess.TimeoutExpired) else str(error)
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return done.returncode == 0, said[0] if said else f"exit code {done.returncode}"


def _state(finding: Finding) -> str:
    if finding.usable:
        return "usable"
    if finding.required:
        return "BROKEN"
    return "not usable here" if finding.installed else "not there"


def _lines(findings: list[Finding], choices: tuple[Choice, ...], warned: list[str], broken: list[str]) -> None:
    """One line a part, for a file or a pipe."""
    for finding in findings:
        imports = {True: "imports", False: "does not import", None: ""}[finding.importable]
        told = [finding.installed, imports if finding.installed else "", _state(finding), finding.detail]
        told += [f"instead: {finding.stands_in}"] if finding.stands_in else []
        told += [f"get it: {finding.get}"] if finding.get else []
        print(f"{finding.name}: " + "; ".join(filter(None, told)))
    for choice in choices:
        print(f"{choice.feature}: {choice.backend} ({choice.offers})")
    for warning in warned:
        print(f"warning: {warning}")
    print(_verdict(broken))


def _table(findings: list[Finding], choices: tuple[Choice, ...], warned: list[str], broken: list[str]) -> None:
    console = Console()
    made = Table(title="What is here", title_justify="left")
    for name in ("part", "installed", "imports", "here", "what stands in, and how to get it"):
        made.add_column(name)
    for finding in findings:
        colour = "green" if finding.usable else "red" if finding.required else "yellow"
        instead = [finding.detail, finding.stands_in and f"instead: {finding.stands_in}", finding.get]
        made.add_row(
            finding.name,
            escape(finding.installed or "no"),
            {True: "yes", False: "no", None: ""}[finding.importable],
            f"[{colour}]{_state(finding)}[/]",
            escape("\n".join(filter(None, instead))),
        )
    console.print(made)
    chosen = Table(title="Who does it", title_justify="left")
    for name in ("feature", "by", "what", "passed over"):
        chosen.add_column(name)
    for choice in choices:
        chosen.add_row(choice.feature, choice.backend, escape(choice.offers), escape(choice.passed_over))
    console.print(chosen)
    for warning in warned:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    console.print(_verdict(broken), style="red" if broken else "green")


def _verdict(broken: list[str]) -> str:
    return f"required and broken: {', '.join(broken)}" if broken else "everything required works"
