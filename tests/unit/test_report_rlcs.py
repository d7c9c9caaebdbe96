"""The report's part on reinforcement learning: every figure of an iteration that the stage records has a curve.

The metrics are made by the stage's own functions (rl/observe.py) from groups made up here, so that a figure added there
without a curve, or renamed, fails. Not covered: how the curves look.
"""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from megatron_glmv.config.rl import CurriculumConfig
from megatron_glmv.report.page import main
from megatron_glmv.rl import observe
from megatron_glmv.rl.curriculum import Curriculum, Place
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.rewards.health import Health
from megatron_glmv.rl.rollout.contract import Rollout

LEARNED = ("entropy", "clip_low", "clip_high", "drift_mean", "drift_worst", "importance")
RATIOS = ("expansion_ratio", "ratio_observed", "valid_groups", "groups_rolled", "groups_trained", "rollouts")
NOT_DRAWN = {"failed_prompts"}


def record(step: int, curriculum: Curriculum) -> dict[str, Any]:
    groups = []
    for n, domain in enumerate(("chart", "chart", "ocr")):
        said = [Rollout(f"p{n}", k, (1, 2, 3 + k), (-1.0,) * 3, (True, k == 0, True), "x", "stop") for k in range(2)]
        rewards = (1.0, float(n != 1))
        groups.append(Group(f"p{n}", domain, "t", 5, 0, 0, tuple(said), rewards, ("exact", "ocr"), 0.25))
    before = curriculum.occupancy()
    drawn = [curriculum.cell(group.prompt) for group in groups]
    for group in groups:
        curriculum.record(group.prompt, group.rewards)
    made = {"step": step, **observe.describe(groups, 0), **observe.tiers(curriculum, before, drawn)}
    made |= {key: step + i / 7 for i, key in enumerate((*LEARNED, *RATIOS))}
    return made | {"heldout_reward": 0.3 + step / 10, "heldout_greedy": 0.5, "heldout_reward/chart": 0.25}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rl") / "run"
    run.mkdir()
    places = [Place(f"p{n}", domain, "t") for n, domain in enumerate(("chart", "chart", "ocr"))]
    curriculum = Curriculum(CurriculumConfig(), places, seed=1)
    lines = [record(step, curriculum) for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    health = Health()
    for n in range(80):
        health.add("exact", float(n % 2), 0.01, "exact", "timeout" if n == 3 else "", failed=False)
    (run / "verifiers.json").write_text(json.dumps(health.summary()))
    return run


def curves(text: str) -> dict[tuple[str, str], list[list[float]]]:
    """(title of a chart, name of a line) -> points."""
    found = {}
    for data, title in re.findall(r'data-chart="([^"]*)"><figcaption>([^<]*)', text):
        for name, _, points in json.loads(unescape(data))["lines"]:
            found[unescape(title), name] = points
    return found


def test_every_figure_of_an_iteration_has_a_curve(run: Path) -> None:
    text = main([run]).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = curves(text)
    for key in sorted({key for line in lines for key in line} - {"step"} - NOT_DRAWN):
        points = [[line["step"], pytest.approx(line[key], rel=1e-3)] for line in lines]
        assert points in list(drawn.values()), key
    assert ("reward by domain", "ocr") in drawn and ("reward by verifier", "exact") in drawn
    assert ("prompts in each tier", "very easy") in drawn and ("prompts drawn from each tier", "middle") in drawn
    assert drawn["share of the answers", "forced"][0][1] == pytest.approx(0.5), "one of two answers was"


def test_the_health_of_verifiers_is_a_table(run: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", main([run]).read_text(encoding="utf-8"))
    row = text.split("Verifiers")[-1].split("seconds_p95")[1].split()
    assert row[:8] == ["run", "exact", "80", "0.500", "0.500", "0.000", "1", "0"]


def test_several_runs_are_told_apart_and_other_stages_have_no_such_part(run: Path, tmp_path: Path) -> None:
    both = main([run, run], tmp_path / "both.html").read_text(encoding="utf-8")
    assert {name for title, name in curves(both) if title == "expansion ratio"} == {
        "run: running mean",
        "run: of the step",
    }
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert "Reinforcement learning" not in main([tmp_path]).read_text(encoding="utf-8")
