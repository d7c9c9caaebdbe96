"""Force answering: past the thinking budget the end of the thinking is inserted, and carries no loss.

Derivation. An answer of which tokens b, b+1 were inserted is a sample from the model everywhere else, given all that
stands before, inserted tokens included. So (1) those two tokens stand at offset b of every answer that had not ended
its thinking, and nowhere else; (2) the log-probability of every token, inserted ones too, is that of one full forward
pass without a cache; (3) inserted tokens have loss weight 0, and the
weights of an answer sum to 1 without them; (4) draws are those of the rollout's number: another batch gives the same
answer. Not covered: that forced answers are rewarded more (a study).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers.answering import make_answering_run

from megatron_glmv.data.template import GLM41V, GLM45V
from megatron_glmv.inference.load import Loaded, load_for_inference
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.rl.advantage import response_weights
from megatron_glmv.rl.batch import Answer, answer_layout
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.observe import describe
from megatron_glmv.rl.rollout.contract import Rollout
from megatron_glmv.rl.rollout.in_process import ForceAnswer, Request, RolloutEngine

BUDGET, MOST, EACH = 5, 14, 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    with load_for_inference(make_answering_run(tmp_path_factory.mktemp("answering"))) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def engine(loaded: Loaded) -> RolloutEngine:
    old = loaded.engine
    return RolloutEngine(old.model, old.tokenizer, old.features.files, frozenset(), old.device)


@pytest.fixture(scope="module")
def force(engine: RolloutEngine) -> ForceAnswer:
    return ForceAnswer.of(engine.tokenizer, GLM45V, BUDGET)


@pytest.fixture(scope="module")
def requests(loaded: Loaded) -> list[Request]:
    def ask(n: int, text: str) -> Request:
        conversation = {"id": str(n), "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}
        prompt = loaded.prompts.build(conversation, thinking=True)
        return Request(str(n), prompt, tuple(range(n * EACH, (n + 1) * EACH)))

    return [ask(n, text) for n, text in enumerate(("How many are there?", "Which colour is it?", "One two three"))]


@pytest.fixture(scope="module")
def rollouts(engine: RolloutEngine, requests: list[Request], force: ForceAnswer) -> list[Rollout]:
    return engine.roll(requests, MOST, 7, force=force)


def prompt_of(requests: list[Request], rollout: Rollout) -> Prompt:
    return next(request.prompt for request in requests if request.id == rollout.prompt)


def test_the_end_of_the_thinking_is_inserted_at_the_budget(
    engine: RolloutEngine, requests: list[Request], rollouts: list[Rollout], force: ForceAnswer
) -> None:
    end, size = force.tokens[0], len(force.tokens)
    assert end == engine.tokenizer.special("</think>") and size >= 2
    for one in rollouts:
        thought_on = end not in one.token_ids[:BUDGET]
        assert one.forced is thought_on
        if thought_on:
            assert one.token_ids[BUDGET : BUDGET + size] == force.tokens
            assert one.sampled == tuple(not BUDGET <= i < BUDGET + size for i in range(MOST))
    assert sum(one.forced for one in rollouts) >= 12, "a random model seldom ends by itself"

    plain = engine.roll(requests, MOST, 7)
    assert not any(one.forced for one in plain)
    assert [a.token_ids[:BUDGET] for a in plain] == [b.token_ids[:BUDGET] for b in rollouts], "the same draws before it"
    alone = engine.roll([replace(requests[1], numbers=requests[1].numbers[2:4])], MOST, 7, force=force)
    assert [one.token_ids for one in alone] == [one.token_ids for one in rollouts[EACH + 2 : EACH + 4]]


def test_who_ends_the_thinking_in_time_is_left_alone(engine: RolloutEngine, requests: list[Request]) -> None:
    """The opening of the thought's end is forced at 0 tokens; with a later budget nothing is inserted again."""
    early = ForceAnswer(0, (11, 12))
    for one in engine.roll(requests[:1], MOST, 7, force=early):
        assert one.token_ids[:2] == (11, 12) and one.sampled[:2] == (False, False) and all(one.sampled[2:])


def test_log_probabilities_are_those_of_one_full_pass(
    loaded: Loaded, requests: list[Request], rollouts: list[Rollout]
) -> None:
    for one in rollouts[:: EACH - 1]:
        assert one.forced
        logits = loaded.engine.logits(prompt_of(requests, one), list(one.token_ids[:-1]))[-MOST:]
        expected = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(one.logprobs, dtype=torch.float64), expected, atol=2e-5)


def test_inserted_tokens_carry_no_loss_and_are_counted(
    requests: list[Request], rollouts: list[Rollout], force: ForceAnswer
) -> None:
    one = next(rollout for rollout in rollouts if rollout.forced)
    prompt = prompt_of(requests, one)
    group = Group(one.prompt, "d", "t", len(prompt), 0, 0, (one,), (1.0,), ("exact",), 0.0)
    for mean, total in (("sample", 1.0), ("token", float(MOST - len(force.tokens)))):
        layout = answer_layout(prompt, one, response_weights(Answer(group, one, 1.0).trained, mean))
        weights = layout.loss_weights[len(prompt) - 1 :]
        assert (layout.loss_weights[: len(prompt) - 1] == 0).all() and weights.sum() == pytest.approx(total)
        inserted = slice(BUDGET, BUDGET + len(force.tokens))
        assert (weights[inserted] == 0).all() and (weights > 0).sum() == MOST - len(force.tokens)
        assert tuple(layout.labels[len(prompt) - 1 :][inserted].tolist()) == force.tokens

    of_prompt = [rollout for rollout in rollouts if rollout.prompt == "0"]
    free = replace(of_prompt[0], sampled=(True,) * MOST)
    group = Group("0", "d", "t", 9, 0, 0, (free, *of_prompt[1:]), (0.0,) * EACH, ("exact",) * EACH, 0.0)
    share = sum(rollout.forced for rollout in of_prompt[1:]) / EACH
    assert describe([group], 0)["forced_answers"] == pytest.approx(share) and share > 0


def test_each_template_opens_its_answer(engine: RolloutEngine) -> None:
    special = engine.tokenizer.special
    assert ForceAnswer.of(engine.tokenizer, GLM41V, 3).tokens == (special("</think>"), special("<answer>"))
    assert ForceAnswer.of(engine.tokenizer, GLM45V, 3).tokens == (special("</think>"), *engine.tokenizer.encode("\n"))
