from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.sample import lay_out, lay_out_prompt
from megatron_glmv.data.tokenizer import Tokenizer, train_tokenizer
from megatron_glmv.data.types import IMAGE, VIDEO, Grid, MediaPlan

PICTURE = MediaPlan(IMAGE, "0.png", Grid(1, 4, 6), 56, 84)
FILM = MediaPlan(VIDEO, "1.webm", Grid(2, 4, 4), 56, 56, frames=(0, 12, 24, 36), seconds=(0, 11))
MIXED: dict[str, Any] = {
    "id": "mixed",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "0.png"},
                {"type": "video", "video": "1.webm"},
                {"type": "text", "text": "Same?"},
            ],
        },
        {"role": "assistant", "content": "yes"},
    ],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["Same? yes no"] * 20, directory, 400)
    return Tokenizer.load(directory)


def test_media_become_placeholders_with_their_markup_and_whole_seconds(tokenizer: Tokenizer) -> None:
    layout = lay_out(MIXED, [PICTURE, FILM], tokenizer, "glm45v")
    image = "<|begin_of_image|>{}<|end_of_image|>"
    film = f"{image.format('<|image|>' * 4)}0{image.format('<|image|>' * 4)}11"
    assert tokenizer.decode(layout.input_ids.tolist()) == (
        f"[gMASK]<sop><|user|>\n{image.format('<|image|>' * 6)}<|begin_of_video|>{film}<|end_of_video|>"
        "Same?/nothink<|assistant|>\n<think></think>\nyes"
    )
    assert (layout.input_ids[layout.visual_positions] == tokenizer.special("<|image|>")).all()
    assert len(layout.visual_positions) == (layout.input_ids == tokenizer.special("<|image|>")).sum() == 6 + 8
    assert layout.patches == 24 + 32


def test_labels_are_the_next_tokens_of_the_answer_and_its_end(tokenizer: Tokenizer) -> None:
    layout = lay_out(MIXED, [PICTURE, FILM], tokenizer, "glm45v")
    where = np.flatnonzero(layout.loss_weights)
    assert tokenizer.decode(layout.labels[where].tolist()) == "yes<|user|>"
    inside = where[where + 1 < len(layout)]
    assert (layout.labels[inside] == layout.input_ids[inside + 1]).all()
    assert (layout.labels[layout.loss_weights == 0] == 0).all()
    assert where[-1] == len(layout) - 1  # the end of the turn is predicted from the last input


def test_positions_follow_the_pictures(tokenizer: Tokenizer) -> None:
    layout = lay_out(MIXED, [PICTURE, FILM], tokenizer, "glm45v")
    first = layout.visual_positions[:6]
    assert layout.position_ids[:, first].tolist() == [[5] * 6, [5, 5, 5, 6, 6, 6], [5, 6, 7, 5, 6, 7]]
    assert layout.position_ids[:, first[-1] + 1].tolist() == [8, 8, 8]
    assert layout.position_ids[:, 0].tolist() == [0, 0, 0]


def test_a_prompt_is_the_sample_up_to_its_last_answer(tokenizer: Tokenizer) -> None:
    sample = lay_out(MIXED, [PICTURE, FILM], tokenizer, "glm45v")
    question = {"id": "mixed", "messages": MIXED["messages"][:1]}
    prompt = lay_out_prompt(question, [PICTURE, FILM], tokenizer, "glm45v")
    n = len(prompt)
    assert (prompt.input_ids == sample.input_ids[:n]).all()
    assert (prompt.position_ids == sample.position_ids[:, :n]).all()
    assert not prompt.loss_weights.any()
    assert np.flatnonzero(sample.loss_weights)[0] == n - 1


@pytest.mark.parametrize(
    ("plans", "reason"),
    [
        ([PICTURE], "refers to 2 media, but 1 are planned"),
        ([PICTURE, FILM, FILM], "refers to 2 media, but 3 are planned"),
        ([FILM, PICTURE], "medium 0 is a image in the conversation and a video"),
    ],
)
def test_other_media_than_planned_are_named_with_both_numbers(
    tokenizer: Tokenizer, plans: list[MediaPlan], reason: str
) -> None:
    with pytest.raises(SampleError, match=reason) as caught:
        lay_out(MIXED, plans, tokenizer, "glm45v")
    assert caught.value.key == "mixed"


def test_a_conversation_without_an_answer_is_a_sample_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(SampleError, match="no answer"):
        lay_out({"id": "q", "messages": [{"role": "user", "content": "Same?"}]}, [], tokenizer, "glm45v")


def test_text_is_cut_anywhere_and_media_never(tokenizer: Tokenizer) -> None:
    text = {"messages": [{"role": "user", "content": "Same? " * 30}, {"role": "assistant", "content": "yes"}]}
    layout = lay_out(text, [], tokenizer, "glm45v")
    short = layout.part(0, 20)
    assert len(short) == 20
    assert (short.input_ids == layout.input_ids[:20]).all()
    assert short.position_ids.shape == (3, 20)
    with pytest.raises(ValueError, match="inside an image"):
        lay_out(MIXED, [PICTURE, FILM], tokenizer, "glm45v").part(0, 20)


PAGE: dict[str, Any] = {
    "id": "page",
    "messages": [
        {
            "role": "document",
            "content": [
                {"type": "text", "text": "Same? yes " * 6},
                {"type": "image", "image": "0.png"},
                {"type": "text", "text": "no no " * 9},
                {"type": "video", "video": "1.webm"},
                {"type": "image", "image": "0.png"},
                {"type": "text", "text": "yes."},
            ],
        }
    ],
}


@pytest.mark.parametrize("budget", [24, 32, 33, 40, 64, 500])
def test_a_document_is_split_between_its_media_and_loses_nothing(tokenizer: Tokenizer, budget: int) -> None:
    whole = lay_out(PAGE, [PICTURE, FILM, PICTURE], tokenizer, "glm45v")
    spans = whole.parts(budget)
    pieces = [whole.part(start, length) for start, length in spans]
    assert max(length for _, length in spans) <= budget
    assert (len(pieces) == 1) == (budget >= len(whole))
    for name in ("input_ids", "labels", "loss_weights"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        assert (joined == getattr(whole, name)).all(), name
    assert [p for piece in pieces for p in piece.plans] == list(whole.plans)
    assert next(piece.first_medium for piece in pieces if piece.plans) == 0
    placeholder = tokenizer.special("<|image|>")
    for piece, (start, _) in zip(pieces, spans, strict=True):
        assert (piece.position_ids[:, 0] == 0).all()
        assert (piece.input_ids[piece.visual_positions] == placeholder).all()
        assert len(piece.visual_positions) == (piece.input_ids == placeholder).sum()
        assert len(piece.visual_positions) * 4 == piece.patches
        assert [whole.plans[piece.first_medium + n] for n in range(len(piece.plans))] == list(piece.plans)
        shifted = whole.position_ids[:, start : start + len(piece)] - whole.position_ids[:, start : start + 1]
        assert (piece.position_ids == shifted).all()
    assert whole.parts(16) == [], "the film alone is longer"
