"""One conversation as the arrays of one sample: ids, labels, loss weights, positions, places of its visual tokens.

Shapes: L tokens of the sample, M visual tokens, G media.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.positions import Picture, mrope_positions
from megatron_glmv.data.template import Media, Piece, Text, generation_prompt, render
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.data.types import VIDEO, Json, MediaPlan


@dataclass(frozen=True, eq=False)
class SampleLayout:
    """Everything of a sample but its pixels."""

    input_ids: NDArray[np.int64]
    """[L]"""
    labels: NDArray[np.int64]
    """[L]: the next token; 0 where it carries no loss. The token that ends the last turn is a label only."""
    loss_weights: NDArray[np.float32]
    """[L]: weight of predicting labels[t] at t."""
    position_ids: NDArray[np.int64]
    """[3, L]: time, height, width, from 0."""
    visual_positions: NDArray[np.int64]
    """[M]: index of each placeholder, in the order of the patches."""
    plans: tuple[MediaPlan, ...]
    """[G] in order of appearance."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def patches(self) -> int:
        return sum(plan.grid.patches for plan in self.plans)

    def truncated(self, length: int) -> SampleLayout:
        """The first `length` tokens of a sample of text alone. Raises ValueError where it has media."""
        if length >= len(self):
            return self
        if self.plans:
            raise ValueError("a sample with media is not truncated: the cut could fall inside an image")
        return replace(
            self,
            input_ids=self.input_ids[:length],
            labels=self.labels[:length],
            loss_weights=self.loss_weights[:length],
            position_ids=self.position_ids[:, :length],
        )


def lay_out(
    conversation: Json,
    plans: Sequence[MediaPlan],
    tokenizer: Tokenizer,
    template: str,
    merge: int = 2,
    *,
    thinking: bool | None = None,
) -> SampleLayout:
    """A sample to train on. `plans` are those of its media in order of appearance.

    thinking: see `template.render`. Raises SampleError where the conversation has no meaning in the template, refers to
    other media than are planned, or has no answer to learn from.
    """
    key = _key(conversation)
    pieces = render(_messages(conversation), template, thinking=thinking, key=key)
    layout = _assemble(pieces, plans, tokenizer, merge, key, ends_in_label=True)
    if not layout.loss_weights.any():
        raise SampleError(key, "has no answer to learn from")
    return layout


def lay_out_prompt(
    conversation: Json,
    plans: Sequence[MediaPlan],
    tokenizer: Tokenizer,
    template: str,
    merge: int = 2,
    *,
    thinking: bool = False,
) -> SampleLayout:
    """What stands before the first token to generate: all of `conversation`, then an opened assistant turn; no loss.

    The next token's position is `position_ids.max() + 1` in all three. Raises SampleError as `lay_out` does.
    """
    key = _key(conversation)
    prompt = generation_prompt(_messages(conversation), template, thinking=thinking, key=key)
    layout = _assemble(prompt, plans, tokenizer, merge, key, ends_in_label=False)
    return replace(layout, labels=np.zeros_like(layout.labels), loss_weights=np.zeros_like(layout.loss_weights))


def _assemble(
    pieces: Sequence[Piece],
    plans: Sequence[MediaPlan],
    tokenizer: Tokenizer,
    merge: int,
    key: str,
    *,
    ends_in_label: bool,
) -> SampleLayout:
    """Pieces to arrays. With `ends_in_label` the last token is a label and no input."""
    _check_media([piece.kind for piece in pieces if isinstance(piece, Media)], plans, key)
    ids: list[int] = []
    trained: list[bool] = []
    pictures: list[Picture] = []
    remaining = iter(plans)
    for piece in pieces:
        if isinstance(piece, Media):
            _add_medium(next(remaining), tokenizer, merge, ids, pictures)
            trained += [False] * (len(ids) - len(trained))
        else:
            new = tokenizer.encode(piece.text) if isinstance(piece, Text) else [tokenizer.special(piece.name)]
            ids += new
            trained += [piece.trained] * len(new)
    length = len(ids) - ends_in_label
    tokens = np.array(ids, dtype=np.int64)
    weights = np.zeros(length, dtype=np.float32)
    weights[: len(ids) - 1] = trained[1:]
    labels = np.zeros(length, dtype=np.int64)
    labels[: len(ids) - 1] = tokens[1:]
    labels[weights == 0] = 0
    spans = [np.arange(p.start, p.start + p.rows * p.columns) for p in pictures]
    return SampleLayout(
        input_ids=tokens[:length],
        labels=labels,
        loss_weights=weights,
        position_ids=mrope_positions(length, pictures),
        visual_positions=np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64),
        plans=tuple(plans),
    )


def _add_medium(plan: MediaPlan, tokenizer: Tokenizer, merge: int, ids: list[int], pictures: list[Picture]) -> None:
    """Markup and placeholders of one medium. Both kinds have the placeholder `<|image|>`; a video's temporal patches
    stand in image markup of their own, each with its whole second written behind it."""
    begin, end = tokenizer.special("<|begin_of_image|>"), tokenizer.special("<|end_of_image|>")
    placeholder = tokenizer.special("<|image|>")
    rows, columns = plan.grid.h // merge, plan.grid.w // merge

    def picture() -> None:
        ids.append(begin)
        pictures.append(Picture(len(ids), rows, columns))
        ids.extend([placeholder] * (rows * columns))
        ids.append(end)

    if plan.kind != VIDEO:
        picture()
        return
    ids.append(tokenizer.special("<|begin_of_video|>"))
    for second in plan.seconds:
        picture()
        ids.extend(tokenizer.encode(str(second)))
    ids.append(tokenizer.special("<|end_of_video|>"))


def _check_media(kinds: Sequence[str], plans: Sequence[MediaPlan], key: str) -> None:
    planned = [plan.kind for plan in plans]
    if len(kinds) != len(planned):
        raise SampleError(key, f"refers to {len(kinds)} media, but {len(planned)} are planned")
    for number, (kind, other) in enumerate(zip(kinds, planned, strict=True)):
        if kind != other:
            raise SampleError(key, f"medium {number} is a {kind} in the conversation and a {other} in the shard")
    for plan in plans:
        if plan.kind == VIDEO and len(plan.seconds) != plan.grid.t:
            raise SampleError(key, f"{plan.member}: {plan.grid.t} temporal patches, but {len(plan.seconds)} seconds")


def _messages(conversation: Json) -> list[Json]:
    messages = conversation.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise SampleError(_key(conversation), "has no list `messages`")
    return messages


def _key(conversation: Json) -> str:
    return str(conversation.get("id", "?"))
