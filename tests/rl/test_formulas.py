"""Each formula of rl/ against a few lines of numpy that say it in another way.

Derivation. Advantages, ratios and tier weights are closed formulas of the rewards of logged groups; the loss and its
gradient are compared with the definition written for one token at a time, in float64, where the gradient of
-min(r A, clip(r) A) is -r A grad(log p) where the clip is inactive and 0 where it is active. Not covered here: how
tokens are spread over ranks (test_layouts.py), that learning follows (docs/rlcs.md).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_glmv.config.rl import CurriculumConfig
from megatron_glmv.rl.advantage import batch_weight, group_advantages, response_weights, valid
from megatron_glmv.rl.curriculum import Curriculum, Place, tier_of, tier_weight
from megatron_glmv.rl.expansion import Plan, expansion_ratio, most_balanced, plan
from megatron_glmv.rl.policy_loss import clipped_loss, sequence_log_ratio, truncated_importance


def test_advantages_are_standard_scores_of_their_group() -> None:
    rewards = [1.0, 0.0, 0.0, 0.25, 1.0, 0.0]
    mean = sum(rewards) / 6
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 6)
    assert np.allclose(group_advantages(rewards), [(r - mean) / deviation for r in rewards], atol=1e-15)
    assert np.allclose(group_advantages(rewards, by_deviation=False), [r - mean for r in rewards], atol=1e-15)
    for same in ([1.0] * 8, [0.0] * 8, [0.3] * 3, [1.0]):
        assert not valid(same) and not group_advantages(same).any()


def test_the_loss_is_the_mean_over_answers_of_the_mean_over_their_tokens() -> None:
    masks = [np.array([1, 1, 0, 1], bool), np.array([1], bool), np.array([0, 0], bool)]
    losses = [np.array([1.0, 2.0, 100.0, 3.0]), np.array([5.0]), np.array([7.0, 7.0])]
    by_sample = sum(float(response_weights(m, "sample") @ x) for m, x in zip(masks, losses, strict=True))
    assert by_sample / batch_weight(masks, "sample") == pytest.approx((2.0 + 5.0) / 2)
    by_token = sum(float(response_weights(m, "token") @ x) for m, x in zip(masks, losses, strict=True))
    assert by_token / batch_weight(masks, "token") == pytest.approx((1 + 2 + 3 + 5) / 4)


def test_clipping_has_its_own_upper_bound_and_takes_the_gradient_where_it_acts() -> None:
    ratios = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.27, 1.29, 2.0], dtype=torch.float64)
    for advantage in (1.5, -0.7):
        log_ratio = ratios.log().requires_grad_()
        loss, clipped = clipped_loss(log_ratio, torch.full_like(ratios, advantage), 0.2, 0.28)
        loss.sum().backward()
        for i, r in enumerate(ratios.tolist()):
            active = r > 1.28 if advantage > 0 else r < 0.8
            bound = 1.28 if advantage > 0 else 0.8
            assert loss[i].item() == pytest.approx(-advantage * (bound if active else r), abs=1e-12)
            assert log_ratio.grad is not None
            assert log_ratio.grad[i].item() == pytest.approx(0.0 if active else -advantage * r, abs=1e-12)
            assert clipped[i].item() is active
    assert clipped_loss(torch.tensor([math.log(1.25)]), torch.tensor([1.0]), 0.2, 0.2)[1].item(), "not with clip-higher"


def test_gspo_has_the_gradient_of_the_sequence_ratio() -> None:
    """d/dx of s A with s = exp(mean(x - old)) is s A / n for each token; with the per-sample mean as weights."""
    x = torch.tensor([-1.0, -0.4, -2.0, -0.7, -0.9], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.1, -0.6, -1.9, -0.5, -0.8], dtype=torch.float64)
    segments, weights = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1 / 3] * 3 + [1 / 2] * 2, dtype=torch.float64)
    counts = torch.tensor([3.0, 2.0], dtype=torch.float64)
    sums = torch.zeros(2, dtype=torch.float64).index_add(0, segments, (x - old).detach())
    log_ratio = sequence_log_ratio(x - old, sums, counts, segments)
    advantages = torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0], dtype=torch.float64)
    loss, _ = clipped_loss(log_ratio, advantages, 0.2, 0.28)
    (loss * weights).sum().backward()
    s = [math.exp(float(v)) for v in (sums / counts).tolist()]
    assert x.grad is not None
    assert torch.allclose(x.grad, -torch.tensor([s[0] * 2 / 3] * 3 + [s[1] * -1 / 2] * 2, dtype=torch.float64))


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weights = truncated_importance(old, torch.tensor([-1.0, -3.0, -0.5]), cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5)]) and not weights.requires_grad


def test_the_expansion_ratio_and_its_two_readings() -> None:
    assert expansion_ratio(8, 32, 10.0) == pytest.approx(1 / (1 - 24 / 32))
    assert expansion_ratio(0, 32, 3.0) == 3.0 and expansion_ratio(1, 32, 3.0) == 3.0 and expansion_ratio(0, 0, 3.0) == 1
    assert plan(32, 1.5, "rollouts") == Plan(48, 32)
    assert plan(32, 2.0, "budget") == Plan(32, 16)
    assert plan(32, 2.0, "none") == Plan(32, 32)
    assert plan(10, 1.2, "rollouts").rolled == 12, "not 13 by rounding of 1.2 x 10"


def test_the_most_balanced_groups_are_chosen() -> None:
    rewards = [[1] * 8, [1] * 4 + [0] * 4, [0] * 8, [1] + [0] * 7, [1] * 5 + [0] * 3, [1] * 7 + [0]]
    assert most_balanced(rewards, 1) == [1]
    assert most_balanced(rewards, 2) == [1, 4]
    assert most_balanced(rewards, 4) == [1, 3, 4, 5]
    assert most_balanced(rewards, 9) == list(range(6))


EDGES = (0.0625, 0.3, 0.7, 0.9375)


def places(rates: dict[str, float | None], domain: str = "math") -> list[Place]:
    return [Place(id, domain, id[0], rate) for id, rate in rates.items()]


def test_tiers_are_cut_at_the_edges() -> None:
    eighths = [tier_of(k / 8, EDGES) for k in range(9)]
    assert eighths == [0, 1, 1, 2, 2, 2, 3, 3, 4]
    assert tier_weight(0.5, 0.02) == pytest.approx(1.02) and tier_weight(0.0, 0.02) == tier_weight(1.0, 0.02) == 0.02


def test_online_grading_is_merged_with_the_offline_label() -> None:
    """A label of 4 answers at rate 1, then 8 answers of which 2 are right, with half of the older evidence kept."""
    config = CurriculumConfig(keep=0.5, label_weight=4.0)
    curriculum = Curriculum(config, places({"a1": 1.0, "a2": None, "b1": None}), seed=3)
    assert curriculum.rate("a1") == 1.0 and curriculum.tier("a1") == 4
    assert curriculum.rate("a2") == 1.0, "its subcategory's mean"
    assert curriculum.rate("b1") == 0.5, "nothing is known"
    curriculum.record("a1", [1, 1, 0, 0, 0, 0, 0, 0])
    assert curriculum.rate("a1") == pytest.approx((0.5 * 4 + 2) / (0.5 * 4 + 8))
    assert curriculum.tier("a1") == 2
    running = curriculum.running["math", "a", 4]  # the cell it was drawn from
    assert running.rate == pytest.approx(0.8 * (0.9375 + 1) / 2 + 0.2 * 0.25)
    assert running.valid == pytest.approx(0.8 * 0.5 + 0.2 * 1.0)


def test_weights_lean_toward_the_middle_and_draws_follow_them() -> None:
    rates = {f"a{i}": (0.99 if i < 60 else 0.5 if i < 77 else 0.0) for i in range(100)}
    curriculum = Curriculum(CurriculumConfig(), places(rates), seed=3)
    weights = curriculum.weights(10)
    raw = {4: 10 * (4 * 0.96875 * 0.03125 + 0.02), 2: 10 * 1.02, 0: 10 * (4 * 0.03125 * 0.96875 + 0.02)}
    for tier, value in raw.items():
        assert weights["math", "a", tier] == pytest.approx(value / sum(raw.values()))
    drawn = [id for step in range(200) for id in curriculum.draw(step, 10)]
    share = sum(curriculum.tier(id) == 2 for id in drawn) / len(drawn)
    assert 0.6 < share < weights["math", "a", 2] + 0.02, "ten of seventeen in a draw without repetition"
    uniform = Curriculum(CurriculumConfig(enabled=False), places(rates), seed=3)
    drawn = [id for step in range(200) for id in uniform.draw(step, 10)]
    assert abs(sum(uniform.tier(id) == 2 for id in drawn) / len(drawn) - 0.17) < 0.03
    assert all(len(set(uniform.draw(step, 100))) == 100 for step in range(3)), "none twice"


def test_domains_keep_their_shares() -> None:
    pool = [*places({f"a{i}": 0.5 for i in range(90)}), *places({f"a{i}x": 0.5 for i in range(10)}, "chart")]
    curriculum = Curriculum(CurriculumConfig(mix={"math": 1.0, "chart": 3.0}), pool, seed=1)
    by_domain = {d: sum(w for c, w in curriculum.weights(8).items() if c[0] == d) for d in ("math", "chart")}
    assert by_domain == pytest.approx({"math": 0.25, "chart": 0.75})


def test_a_draw_depends_on_seed_step_and_state_alone() -> None:
    pool = places({f"a{i}": None for i in range(40)})
    one, other = (Curriculum(CurriculumConfig(grade=5), pool, seed=9) for _ in range(2))
    assert one.to_grade() == other.to_grade() and len(one.to_grade()) == 5
    for step in range(4):
        assert one.draw(step, 8) == other.draw(step, 8)
        for number, id in enumerate(one.draw(step, 8)):
            one.record(id, [float(number % 2), 0.0])
        other = Curriculum(CurriculumConfig(grade=5), pool, seed=9)
        other.load(one.state())
    assert one.state() == other.state() and one.cells() == other.cells()
    assert one.draw(5, 8) != one.draw(6, 8)
    first = one.draw(5, 8)
    assert not set(first) & set(one.draw(5, 8, part=1, without=first))
