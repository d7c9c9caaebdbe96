"""Experts of a rollout, chosen again in training: equal to those recorded whatever the weights have become.

Derivation. With the weights of the rollout the trained model chooses the same experts by itself, and replaying them
changes nothing (bit by bit: the same scores are gathered). With other router weights its own choices differ, those that
are replayed are the recorded ones in every layer and token that was read, and log-probabilities lie closer to the
rollout's than with choices of its own. tests/rl/test_layouts.py holds a step with replay to one process under every
layout. Not covered: fused routing kernels, which are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.answering import VOCAB, answering_config, make_answering_run

from megatron_glmv.config.rl import RLConfig
from megatron_glmv.data.collate import Sample, collate
from megatron_glmv.data.cost import Cost
from megatron_glmv.inference.load import Loaded, load_for_inference
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.model.replay import NONE, ReplayRows, choosers, take_differing
from megatron_glmv.model.replay import replay as replay_in
from megatron_glmv.rl.advantage import response_weights
from megatron_glmv.rl.batch import Answer, MiniBatch, answer_layout, lay_out_packs
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.rollout.contract import Request
from megatron_glmv.rl.rollout.in_process import RolloutEngine
from megatron_glmv.rl.rollout.routes import routes_of, rows_of
from megatron_glmv.rl.rollout.routes_text import packed, unpacked
from megatron_glmv.train.step import model_inputs

BUDGET = 512
MODEL = answering_config(Path()).model


def test_choices_go_through_the_mask() -> None:
    noise = np.random.default_rng(1)
    rows = ReplayRows(layers=3, topk=2, experts=5)
    chosen = torch.from_numpy(noise.integers(0, 5, (7, 3, 2)))
    chosen[2] = NONE
    written = rows.write(chosen)
    assert written.shape == (rows.count, 7) and rows.count == 1 + 3 * 2 * 3
    for layer in range(3):
        given, read = rows.read(written.T, layer)
        assert given.tolist() == [n != 2 for n in range(7)] and torch.equal(read[given], chosen[given, layer])


@pytest.mark.parametrize("experts", [4, 256, 300])
def test_choices_go_as_text(experts: int) -> None:
    made = np.random.default_rng(2).integers(0, experts, (9, 3, 2)).astype(np.int16)
    made[0, 0, 0] = experts - 1
    text = packed([made[:4], made[4:]], 8)
    assert (unpacked(text, 3, 2) == made[:8]).all() and len(text) <= 4 * (
        3 + 8 * 3 * 2 * (2 if experts > 256 else 1)
    ) / 3
    assert packed([], 8) == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answering_run(tmp_path_factory.mktemp("replay")).parent.parent


@pytest.fixture
def loaded(run: Path) -> Iterator[Loaded]:
    with load_for_inference(run) as loaded:
        yield loaded


def rolled_out(loaded: Loaded, run: Path) -> tuple[list[Group], dict[str, Prompt]]:
    """Two prompts of one length and one with a picture, four answers each, some of which end early."""
    engine = loaded.engine
    stop = tuple(name for name in ("<|user|>", "<|endoftext|>"))
    recording = RolloutEngine(engine.model, engine.tokenizer, engine.features.files, stop, engine.device)
    recording.stop_ids = frozenset(range(0, VOCAB, 9))
    recording.record_routes()
    picture = {"type": "image", "image": str(run / "data" / "media" / "a.png")}
    asked: dict[str, list[dict[str, Any]]] = {"p0": [], "p1": [], "p2": [picture]}
    prompts = {}
    for name, media in asked.items():
        content = [*media, {"type": "text", "text": f"Which {name}?"}]
        prompts[name] = loaded.prompts.build({"id": name, "messages": [{"role": "user", "content": content}]})
    requests = [Request(name, prompts[name], tuple(range(4 * n, 4 * n + 4))) for n, name in enumerate(prompts)]
    rollouts = recording.roll(requests, 8, 3)
    rewards, judged = (1.0, 0.0, 0.0, 1.0), ("exact",) * 4
    groups = [
        Group(r.id, "d", "t", len(r.prompt), 0, 0, tuple(rollouts[4 * n : 4 * n + 4]), rewards, judged, 0.0)
        for n, r in enumerate(requests)
    ]
    for chooser in choosers(engine.model):
        chooser.recorded = None
    return groups, prompts


def forward(loaded: Loaded, batch: MiniBatch, prompts: dict[str, Prompt], routes: Any) -> tuple[float, list[Any]]:
    """Mean difference of log-probabilities from the rollout's, and the experts of each answer's tokens, [T, N, K]."""
    model, files = loaded.engine.model, loaded.engine.features.files
    found, experts = [], []
    for pack in batch.packs:
        answers = [batch.answers[i] for i in pack]
        samples = []
        for answer in answers:
            prompt = prompts[answer.group.prompt]
            layout = answer_layout(prompt, answer.rollout, response_weights(answer.trained, "sample"))
            pixels = tuple(files.decode(list(prompt.media)))
            samples.append(Sample(answer.key, layout, pixels, ("r",) * len(pixels)))  # type: ignore[arg-type]
        made = collate(samples, BUDGET, 0, files.vision.patch_values)
        inputs = model_inputs(made, torch.device("cpu"), model.vision, replayed=routes(made) if routes else None)
        for chooser in choosers(model):
            chooser.recorded = []
        with torch.no_grad():
            losses = model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)[0]
        chosen = torch.stack([c.recorded[0] for c in choosers(model)], dim=1).numpy()  # type: ignore[index]
        for answer, start in zip(answers, made.cu_seqlens.tolist(), strict=False):
            first = start + answer.group.tokens - 1
            logprobs = -losses[first : first + len(answer.rollout.token_ids)]
            found.append((logprobs - torch.tensor(answer.rollout.logprobs)).abs().mean())
            experts.append(chosen[start : start + answer.length])
    return float(torch.stack(found).mean()), experts


def test_what_was_chosen_is_chosen_again(loaded: Loaded, run: Path) -> None:
    groups, prompts = rolled_out(loaded, run)
    answers = [Answer(group, rollout, 1.0) for group in groups for rollout in group.rollouts]
    assert len({len(answer.rollout.token_ids) for answer in answers}) > 2, "some ended while others went on"
    rows, model = rows_of(MODEL.text), loaded.engine.model
    assert rows is not None
    batch = lay_out_packs(answers, "sample", BUDGET, 1, 1, Cost.of(MODEL))
    order = [batch.answers[i] for pack in batch.packs for i in pack]
    recorded = [unpacked(answer.rollout.routes, rows.layers, rows.topk) for answer in order]
    routes = routes_of([batch], BUDGET, rows)

    drift, own = forward(loaded, batch, prompts, None)
    assert drift < 1e-4 and all((a == b).all() for a, b in zip(own, recorded, strict=True)), "the same weights"
    replay_in([model], rows)
    again, _ = forward(loaded, batch, prompts, routes)
    assert again == drift and take_differing([model])[0] == 0

    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "router" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=noise))
    replayed, chosen = forward(loaded, batch, prompts, routes)
    assert all((a == b).all() for a, b in zip(chosen, recorded, strict=True))
    differing, total = take_differing([model])
    assert total == sum(len(part) for part in recorded) * rows.layers and 0.05 < differing / total < 0.95
    for chooser in choosers(model):
        chooser.rows = None
    alone, other = forward(loaded, batch, prompts, None)
    assert any((a != b).any() for a, b in zip(other, recorded, strict=True))
    assert replayed < 0.8 * alone, (replayed, alone)


def test_an_answer_with_other_tokens_is_refused(loaded: Loaded, run: Path) -> None:
    groups, _ = rolled_out(loaded, run)
    cut = replace(groups[0].rollouts[0], routes=groups[2].rollouts[0].routes)
    batch = lay_out_packs([Answer(groups[0], cut, 1.0)], "sample", BUDGET, 1, 1, Cost.of(MODEL))
    rows = rows_of(MODEL.text)
    assert rows is not None and RLConfig().routing_replay is False

    class Pack:
        sample_ids = (batch.answers[0].key,)

    with pytest.raises(ValueError, match=r"p0#0 has \d+ routed tokens"):
        routes_of([batch], BUDGET, rows)(Pack())  # type: ignore[arg-type]
