"""A conversation with media files as what the model is given: ids and positions up to the opened answer.

Shapes: T tokens of the prompt, M visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_glmv.data.conversation import media_of
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.sample import SampleLayout, lay_out_prompt, lay_out_turn
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.data.types import Json
from megatron_glmv.inference.media import MediaFile, MediaFiles


@dataclass(frozen=True, eq=False)
class Prompt:
    """Everything before the first generated token. Pixels are not read yet."""

    input_ids: torch.Tensor
    """[T] int64."""
    position_ids: torch.Tensor
    """[3, T] int64: time, height, width."""
    visual_positions: torch.Tensor
    """[M] int64: index of each placeholder, in the order of the media's patches."""
    media: tuple[MediaFile, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


class PromptBuilder:
    """Lays prompts out under one tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, files: MediaFiles) -> None:
        self.tokenizer, self.files = tokenizer, files

    def build(self, conversation: Json, *, thinking: bool = False, closed: bool = True) -> Prompt:
        """Media paths in the conversation are absolute, or relative to the working directory.

        thinking=False opens the answer with the thinking already closed, or with closed=False leaves that to the model
        (template.generation_prompt). Raises SampleError where the conversation has
        no meaning in the template or a file cannot be used.
        """
        try:
            references = media_of(conversation)
        except ValueError as error:
            raise SampleError(str(conversation.get("id", "?")), str(error)) from error
        media = tuple(self.files.look(kind, Path(path)) for kind, path in references)
        return self.of_media(conversation, media, thinking=thinking, closed=closed)

    def of_media(
        self, conversation: Json, media: Sequence[MediaFile], *, thinking: bool = False, closed: bool = True
    ) -> Prompt:
        """The same with media that were looked at before, in order of appearance."""
        plans = [medium.plan for medium in media]
        template, merge = self.files.data.template, self.files.vision.merge
        layout = lay_out_prompt(conversation, plans, self.tokenizer, template, merge, thinking=thinking, closed=closed)
        return _prompt(layout, media)

    def turn(
        self,
        message: Json,
        media: Sequence[MediaFile],
        *,
        thinking: bool = False,
        role_said: bool = False,
        key: str = "?",
    ) -> Prompt:
        """What follows a generated answer in a conversation that goes on (template.next_turn), positions from 0. Raises
        SampleError."""
        plans = [medium.plan for medium in media]
        template, merge = self.files.data.template, self.files.vision.merge
        layout = lay_out_turn(
            message, plans, self.tokenizer, template, merge, thinking=thinking, role_said=role_said, key=key
        )
        return _prompt(layout, media)


def _prompt(layout: SampleLayout, media: Sequence[MediaFile]) -> Prompt:
    return Prompt(
        input_ids=torch.from_numpy(layout.input_ids),
        position_ids=torch.from_numpy(layout.position_ids),
        visual_positions=torch.from_numpy(layout.visual_positions),
        media=tuple(media),
    )
