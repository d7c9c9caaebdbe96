"""Reinforcement learning: rewards, curriculum, expansion, answers, and what moved in the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_glmv.report.chart import Line, line_chart
from megatron_glmv.report.html import Child, Markup, join, number, table, tag, whole
from megatron_glmv.report.record import RunRecord
from megatron_glmv.report.sections.curves import metric

TIERS = ("very hard", "hard", "middle", "easy", "very easy")
"""Names of the default five; other numbers of tiers are numbered."""
HEALTH = (
    "judged", "pass_rate", "pass_rate_recent", "malformed", "timeouts", "failed", "disagreement", "seconds_p50",
    "seconds_p95",
)  # fmt: skip


class Reinforcement:
    title = "Reinforcement learning"
    anchor = "rlcs"

    def render(self, runs: Sequence[RunRecord]) -> Markup | None:
        if not any(run.series("rollouts") for run in runs):
            return None
        parts = {
            "Rewards": [
                line_chart(metric(runs, "heldout_reward", marks=True), "held-out reward, sampled", log=False),
                line_chart(metric(runs, "heldout_greedy", marks=True), "held-out reward, greedy", log=False),
                line_chart(metric(runs, "reward_mean", smooth=True), "reward of the rollouts", log=False),
                line_chart(below(runs, "reward/"), "reward by domain", log=False),
                line_chart(below(runs, "verifier/"), "reward by verifier", log=False),
                line_chart(below(runs, "heldout_reward/"), "held-out reward by domain", log=False),
            ],
            "Curriculum": [
                line_chart(tiers(runs, "tier/"), "prompts in each tier", log=False),
                line_chart(tiers(runs, "drawn/"), "prompts drawn from each tier", log=False),
                line_chart(metric(runs, "tier_flow"), "net flow toward easier tiers", log=False),
            ],
            "Expansion": [
                line_chart(
                    named(runs, {"expansion_ratio": "running mean", "ratio_observed": "of the step"}),
                    "expansion ratio",
                    log=False,
                ),
                line_chart(metric(runs, "valid_groups", smooth=True), "share of valid groups", log=False),
                line_chart(
                    named(runs, {"groups_rolled": "rolled out", "groups_trained": "trained"}), "groups", log=False
                ),
                line_chart(
                    named(runs, {"rollouts": "all", "rollouts_graded": "of which grading"}), "rollouts", log=False
                ),
            ],
            "Answers": [
                line_chart(
                    named(runs, {"answer_tokens": "mean", "answer_tokens_max": "longest"}), "tokens of an answer"
                ),
                line_chart(
                    named(runs, {"cut_answers": "cut at the limit", "forced_answers": "forced"}),
                    "share of the answers",
                    log=False,
                ),
                line_chart(
                    named(runs, {"judge_s": "judging", "data_wait_s": "rollouts"}), "seconds of a step", cut=True
                ),
            ],
            "Policy": [
                line_chart(metric(runs, "entropy", smooth=True), "entropy of sampled tokens", log=False),
                line_chart(
                    named(runs, {"clip_low": "lower bound", "clip_high": "upper bound"}), "share clipped", log=False
                ),
                line_chart(
                    named(runs, {"drift_mean": "mean", "drift_worst": "worst answer"}),
                    "engine against training model, log-probability",
                ),
                line_chart(metric(runs, "importance"), "importance weight", log=False),
            ],
        }
        made = [join([tag("h3", name), tag("div", *charts, class_="charts")]) for name, charts in parts.items()]
        return join([*made, *_health(runs)])


def named(runs: Sequence[RunRecord], keys: Mapping[str, str]) -> list[Line]:
    """A line for each key of each run; with several runs the run is named too."""
    lines: list[Line] = []
    for run in runs:
        for key, label in keys.items():
            if points := run.series(key):
                lines.append(Line(label if len(runs) == 1 else f"{run.name}: {label}", points, len(lines)))
    return lines


def below(runs: Sequence[RunRecord], prefix: str) -> list[Line]:
    """A line for each metric whose name begins so."""
    keys = sorted({key for run in runs for line in run.metrics for key in line if key.startswith(prefix)})
    return named(runs, {key: key.removeprefix(prefix) for key in keys})


def tiers(runs: Sequence[RunRecord], prefix: str) -> list[Line]:
    """A line for each tier, hardest first."""
    count = len({key for run in runs for line in run.metrics for key in line if key.startswith(prefix)})
    names = TIERS if count == len(TIERS) else [f"tier {i}" for i in range(count)]
    return named(runs, {f"{prefix}{i}": name for i, name in enumerate(names)})


def _health(runs: Sequence[RunRecord]) -> list[Markup]:
    """Verifiers as the recording rank saw them since the last attempt began."""
    rows: list[list[Child]] = []
    for run in runs:
        for verifier, figures in sorted(run.verifiers.items()):
            own = [figures.get(key) for key in HEALTH]
            shown = [
                "" if value is None else whole(int(value)) if key in ("judged", "timeouts", "failed") else number(value)
                for key, value in zip(HEALTH, own, strict=True)
            ]
            rows.append([run.name, verifier, *shown])
    return [tag("h3", "Verifiers"), table(("run", "verifier", *HEALTH), rows)] if rows else []
