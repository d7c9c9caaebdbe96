"""Generation with a cache against the same model without one, on text, pictures and clips of a tiny random model.

The reference recomputes the whole sequence for every token: no cache, no batch, positions of prompt and answer from
`Prompt` and `continued`. What it does not cover: bf16, in which near ties may fall either way, and several devices.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.answering import make_answering_run

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.errors import SampleError
from megatron_glmv.inference.load import Loaded, load_for_inference
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.inference.sampling import Sampler, Sampling, nucleus

NEW = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answering_run(tmp_path_factory.mktemp("answering"))


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Iterator[Loaded]:
    with load_for_inference(checkpoint) as loaded:
        loaded.engine.stop_ids = frozenset()  # a random model ends its turn anywhere
        yield loaded


def conversation(checkpoint: Path, text: str, *media: str) -> dict[str, Any]:
    folder = checkpoint.parent.parent / "data" / "media"
    kinds = [("video" if name.endswith("webm") else "image", str(folder / name)) for name in media]
    parts = [{"type": kind, kind: path} for kind, path in kinds]
    return {"id": text, "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]}


@pytest.fixture(scope="module")
def prompts(loaded: Loaded, checkpoint: Path) -> dict[str, Prompt]:
    asked = {
        "text": conversation(checkpoint, "How many are there?"),
        "image": conversation(checkpoint, "Which colour is it?", "a.png"),
        "video": conversation(checkpoint, "Describe the video.", "v.webm"),
        "picture and clip": conversation(checkpoint, "Which?", "c.png", "w.webm", "a.png"),
    }
    return {name: loaded.prompts.build(one) for name, one in asked.items()}


def recomputed(loaded: Loaded, prompt: Prompt, count: int) -> tuple[list[int], list[torch.Tensor]]:
    """The likeliest tokens and the logits before each, from a full pass for every token."""
    said: list[int] = []
    logits: list[torch.Tensor] = []
    for _ in range(count):
        logits.append(loaded.engine.logits(prompt, said)[-1])
        said.append(int(logits[-1].argmax()))
    return said, logits


@pytest.mark.parametrize("name", ["text", "image", "video", "picture and clip"])
def test_cached_generation_is_full_recomputation(
    loaded: Loaded, prompts: dict[str, Prompt], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    class Recording(Sampler):
        def pick(self, logits: torch.Tensor, rows: Any) -> torch.Tensor:
            seen.append(logits[0])
            return super().pick(logits, rows)

    monkeypatch.setattr("megatron_glmv.inference.engine.Sampler", Recording)
    (answer,) = loaded.engine.generate([prompts[name]], NEW)
    said, logits = recomputed(loaded, prompts[name], NEW)
    assert list(answer.token_ids) == said
    assert len(set(said)) > 3, "a model that repeats one token would prove little"
    assert torch.stack(logits).std() > 0.1
    assert (torch.stack(seen) - torch.stack(logits)).abs().max() <= 1e-5


def test_media_change_the_answer(loaded: Loaded, checkpoint: Path) -> None:
    asked = [conversation(checkpoint, "Which colour is it?", name) for name in ("a.png", "b.png")]
    logits = [loaded.engine.logits(loaded.prompts.build(one))[-1] for one in asked]
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_a_batch_answers_as_one_by_one(loaded: Loaded, checkpoint: Path) -> None:
    """Equal lengths share a batch, others do not; the stop tokens make some rows end early and leave the batch."""
    texts = ["Which colour is it?", "How many are there?", "Describe the picture."]
    asked = [conversation(checkpoint, t, m) for t in texts for m in ("a.png", "b.png", "c.png", "v.webm")]
    built = [loaded.prompts.build(one) for one in asked]
    assert len({len(p) for p in built}) < len(built)
    alone = [loaded.engine.generate([p], NEW)[0].token_ids for p in built]
    assert [c.token_ids for c in loaded.engine.generate(built, NEW)] == alone

    stop = {ids[1] for ids in alone[::2]}
    loaded.engine.stop_ids = frozenset(stop)
    try:
        stopped = loaded.engine.generate(built, NEW)
    finally:
        loaded.engine.stop_ids = frozenset()
    for whole, cut in zip(alone, stopped, strict=True):
        end = next((i for i, token in enumerate(whole) if token in stop), NEW)
        assert cut.token_ids == whole[:end]
        assert cut.finish == ("stop" if end < NEW else "length")
    assert {c.finish for c in stopped} == {"stop", "length"}


def test_glm_stop_tokens_end_an_answer(checkpoint: Path, loaded: Loaded) -> None:
    tokenizer = loaded.engine.tokenizer
    from megatron_glmv.inference.engine import Engine

    engine = Engine(
        loaded.engine.model, tokenizer, loaded.prompts.files, ("<|endoftext|>", "<|user|>"), torch.device("cpu")
    )
    assert engine.stop_ids == {tokenizer.special("<|endoftext|>"), tokenizer.special("<|user|>")}


def test_text_goes_on_behind_the_highest_position(prompts: dict[str, Prompt]) -> None:
    """A picture's tokens share few positions, so the next position is not the number of tokens (the rope delta)."""
    from megatron_glmv.inference.engine import continued

    for name, prompt in prompts.items():
        longer = continued(prompt.position_ids, 3)
        top = int(prompt.position_ids.max())
        assert longer[:, -3:].tolist() == [[top + 1, top + 2, top + 3]] * 3
        assert (top + 1 == len(prompt)) == (name == "text")


def test_a_picture_is_decoded_and_encoded_once(
    loaded: Loaded, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_glmv.inference.features import Features

    decoded: list[Path] = []
    decode = loaded.prompts.files.decode
    monkeypatch.setattr(
        loaded.prompts.files, "decode", lambda files: decoded.extend(f.path for f in files) or decode(files)
    )
    monkeypatch.setattr(
        loaded.engine, "features", Features(loaded.engine.model.vision, loaded.prompts.files, torch.device("cpu"))
    )
    copy = tmp_path / "copy.png"
    shutil.copy(checkpoint.parent.parent / "data" / "media" / "a.png", copy)
    asked = [conversation(checkpoint, t, "a.png") for t in ("Which?", "How many?")] + [
        conversation(checkpoint, "Which?", str(copy))
    ]
    answers = loaded.engine.generate([loaded.prompts.build(one) for one in asked], 2)
    assert len(decoded) == 1
    assert answers[0].token_ids == answers[2].token_ids


def test_features_beyond_their_budget_are_dropped_and_made_again(loaded: Loaded, prompts: dict[str, Prompt]) -> None:
    from megatron_glmv.inference.features import Features

    small = Features(loaded.engine.model.vision, loaded.prompts.files, torch.device("cpu"), keep=1)
    media = prompts["picture and clip"].media
    first, again = small.of(media), small.of(media)
    assert small._bytes == 0 and not small._known
    assert all(torch.equal(first[m.key], again[m.key]) for m in media)  # type: ignore[arg-type]


def test_a_broken_picture_fails_its_own_question_only(loaded: Loaded, checkpoint: Path, tmp_path: Path) -> None:
    whole = (checkpoint.parent.parent / "data" / "media" / "b.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    asked = [conversation(checkpoint, "Which colour?", name) for name in ("a.png", str(tmp_path / "cut.png"), "b.png")]
    answers = loaded.engine.generate([loaded.prompts.build(one) for one in asked], 3)
    assert [a.finish for a in answers] == ["length", "failed", "length"]
    assert "cut.png" in answers[1].error and answers[1].token_ids == ()


def test_a_missing_picture_is_refused_when_the_prompt_is_built(loaded: Loaded, checkpoint: Path) -> None:
    with pytest.raises(SampleError, match=r"none\.png"):
        loaded.prompts.build(conversation(checkpoint, "Which?", "none.png"))


def test_sampling_does_not_depend_on_the_batch(loaded: Loaded, checkpoint: Path) -> None:
    built = [loaded.prompts.build(conversation(checkpoint, "Which colour is it?", n)) for n in ("a.png", "b.png") * 3]
    hot = Sampling(temperature=1.0, top_p=0.95, seed=4)
    answers = [loaded.engine.generate(built, 8, hot, batch_size=size) for size in (1, 4, 64)]
    assert answers[0] == answers[1] == answers[2]
    assert len({a.token_ids for a in answers[0]}) == 6, "equal prompts draw differently"
    assert loaded.engine.generate(built, 8, Sampling(temperature=1.0, top_p=0.95, seed=5)) != answers[0]


def test_the_nucleus_holds_the_likeliest_tokens_up_to_its_mass() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    for top_p, kept in ((1.0, [0, 1, 2, 3]), (0.76, [1, 2, 3]), (0.75, [1, 3]), (0.5, [1]), (0.01, [1])):
        assert nucleus(probabilities, top_p)[0].nonzero().flatten().tolist() == kept


def test_drawn_tokens_follow_their_probabilities() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    sampler = Sampler(Sampling(temperature=2.0, seed=1), range(4000))
    logits = (2.0 * probabilities.log()).expand(4000, 3)
    counts = torch.bincount(sampler.pick(logits, range(4000)), minlength=3) / 4000
    assert (counts - probabilities).abs().max() < 0.03  # four standard deviations


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**options)  # type: ignore[arg-type]
