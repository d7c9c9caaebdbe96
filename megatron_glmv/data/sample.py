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
from megatron_glmv.data.template import Media, Piece, Text, generation_prompt, next_turn, render
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
    spans: tuple[tuple[int, int], ...] = ()
    """[G]: (first, behind the last) token of each medium with its markup."""
    first_medium: int = 0
    """Number of the first of them among the media of the conversation; above 0 in a later part of it."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def patches(self) -> int:
        return sum(plan.grid.patches for plan in self.plans)

    def inside_media(self) -> NDArray[np.bool_]:
        """[L]: a cut in front of this token would part a medium: its placeholders, its markup, a video's times."""
        inside = np.zeros(len(self), dtype=np.bool_)
        for start, end in self.spans:
            inside[start + 1 : end] = True
        return inside

    def part(self, start: int, length: int) -> SampleLayout:
        """`length` tokens from `start` as a sample of its own, positions from 0; a label may be the next part's first
        token. Raises ValueError where a cut falls inside a medium."""
        end = min(start + length, len(self))
        if start == 0 and end == len(self):
            return self
        cuts = [cut for cut in (start, end) if cut < len(self)]
        if self.plans and self.inside_media()[cuts].any():
            raise ValueError(f"a cut at token {start} or {end} falls inside an image or a video")
        here = [n for n, (first, _) in enumerate(self.spans) if start <= first < end]
        visual = self.visual_positions[(self.visual_positions >= start) & (self.visual_positions < end)]
        return replace(
            self,
            input_ids=self.input_ids[start:end],
            labels=self.labels[start:end],
            loss_weights=self.loss_weights[start:end],
            position_ids=self.position_ids[:, start:end] - self.position_ids[:, start : start + 1],
            visual_positions=visual - start,
            plans=tuple(self.plans[n] for n in here),
            spans=tuple((self.spans[n][0] - start, self.spans[n][1] - start) for n in here),
            first_medium=self.first_medium + (here[0] if here else 0),
        )

    def parts(self, budget: int) -> list[tuple[int, int]]:
        """(start, length) of parts of at most `budget` tokens, each as long as a cut outside media allows; none
        where a medium alone is longer. Parts without a trained token are left out."""
        allowed = np.append(~self.inside_media(), True)
        found, start = [], 0
        while start < len(self):
            end = min(start + budget, len(self))
            while not allowed[end]:
                end -= 1
            if end <= start:
                return []
            if self.loss_weights[start:end].any():
                found.append((start, end - start))
            start = end
        return found


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
    pieces = render(_messages(conversation), template, thinking=thinking, tools=_tools(conversation), key=key)
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
    closed: bool = True,
) -> SampleLayout:
    """What stands before the first token to generate: all of `conversation`, then an opened assistant turn; no loss.

    The next token's position is `position_ids.max() + 1` in all three. Raises SampleError as `lay_out` does.
    """
    key = _key(conversation)
    tools = _tools(conversation)
    prompt = generation_prompt(
        _messages(conversation), template, thinking=thinking, closed=closed, tools=tools, key=key
    )
    layout = _assemble(prompt, plans, tokenizer, merge, key, ends_in_label=False)
    return _without_loss(layout)


def lay_out_turn(
    message: Json,
    plans: Sequence[MediaPlan],
    tokenizer: Tokenizer,
    template: str,
    merge: int = 2,
    *,
    thinking: bool = False,
    role_said: bool = False,
    key: str = "?",
) -> SampleLayout:
    """A turn in the middle of a conversation that goes on, and the assistant turn opened behind it
    (template.next_turn); no loss, positions from 0. Raises SampleError as `lay_out` does."""
    pieces = next_turn(message, template, thinking=thinking, role_said=role_said, key=key)
    layout = _assemble(pieces, plans, tokenizer, merge, key, ends_in_label=False)
    return _without_loss(layout)


def _without_loss(layout: SampleLayout) -> SampleLayout:
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
    media: list[tuple[int, int]] = []
    remaining = iter(plans)
    for piece in pieces:
        if isinstance(piece, Media):
            first = len(ids)
            _add_medium(next(remaining), tokenizer, merge, ids, pictures)
            media.append((first, len(ids)))
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
        spans=tuple(media),
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


def _tools(conversation: Json) -> list[Json]:
    tools = conversation.get("tools") or []
    if not isinstance(tools, list):
        raise SampleError(_key(conversation), "`tools` is no list of function definitions")
    return tools


def _key(conversation: Json) -> str:
    return str(conversation.get("id", "?"))
