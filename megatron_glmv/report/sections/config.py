"""Every option: where several runs differ first, then each run's whole config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from megatron_glmv.data.types import Json
from megatron_glmv.report.html import Markup, absent, join, table, tag
from megatron_glmv.report.record import RunRecord


class ConfigSection:
    title = "Configuration"
    anchor = "config"

    def render(self, runs: Sequence[RunRecord]) -> Markup | None:
        parts = [_differences(runs)] if len(runs) > 1 else []
        for run in runs:
            text = yaml.safe_dump(run.config, sort_keys=False) if run.config else ""
            body = tag("pre", text) if text else absent("config.yaml is not there.")
            parts.append(tag("details", tag("summary", f"config.yaml of {run.name}"), body))
        return join(parts)


def flat(config: Json, prefix: str = "") -> dict[str, Any]:
    """Options by dotted name."""
    made: dict[str, Any] = {}
    for key, value in config.items():
        made.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return made


def _differences(runs: Sequence[RunRecord]) -> Markup:
    options = [flat(run.config) for run in runs]
    names = sorted({name for one in options for name in one})
    rows = []
    for name in names:
        values = [str(one.get(name, "not set")) for one in options]
        if len(set(values)) > 1:
            rows.append([tag("code", name), *values])
    return table(["option", *[run.name for run in runs]], rows) if rows else tag("p", "All options are equal.")
