"""Judged answers as packs to train on, and what the loss has to know of their tokens.

Shapes: T tokens of a pack, P tokens of a prompt, L of an answer; a sample has P + L - 1 (its last token is a label).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_glmv.data.balance import assign
from megatron_glmv.data.collate import Sample, collate
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.packing import aligned, pack_window
from megatron_glmv.data.sample import SampleLayout
from megatron_glmv.data.types import Json, PackedBatch
from megatron_glmv.inference.media import MediaFiles
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.rl.advantage import Floats, batch_weight, response_weights
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.rollout.contract import Rollout
from megatron_glmv.rl.trajectory import unrolled


@dataclass(frozen=True)
class Answer:
    """One answer with its advantage."""

    group: Group
    rollout: Rollout
    advantage: float

    @property
    def key(self) -> str:
        return f"{self.group.prompt}#{self.rollout.number}"

    @property
    def length(self) -> int:
        return self.group.tokens + len(self.rollout.token_ids) - 1

    @property
    def patches(self) -> int:
        return self.group.patches + self.rollout.patches

    @property
    def pictures(self) -> int:
        return self.group.pictures + self.rollout.pictures

    @property
    def trained(self) -> NDArray[np.bool_]:
        return np.array(self.rollout.sampled, dtype=np.bool_)


@dataclass(frozen=True)
class Targets:
    """Of each token of a pack; zero where nothing is trained."""

    advantages: torch.Tensor
    """[T] float32."""
    rollout_logprobs: torch.Tensor
    """[T] float32: the engine's log-probability of labels[t]."""


@dataclass(frozen=True)
class MiniBatch:
    """The answers of one optimizer step, laid out in packs for every replica."""

    answers: tuple[Answer, ...]
    """Those with an advantage: the gradient of the others is zero."""
    packs: tuple[tuple[int, ...], ...]
    """Indices into `answers`."""
    of_replica: tuple[tuple[int, ...], ...]
    """Indices into `packs`, equally many for each replica; beyond the last pack: an empty one."""
    weight: float
    """What the loss sum is divided by: all answers of the step, those without advantage too."""


def lay_out_packs(
    answers: Sequence[Answer], mean: str, budget: int, replicas: int, multiple: int, cost: Cost
) -> MiniBatch:
    """As few packs as best fit makes, dealt to the replicas so that all have about the same work.

    Every replica gets equally many, a multiple of `multiple` (what an interleaved schedule needs). A function of its
    arguments alone: all ranks come to the same.
    """
    weight = batch_weight([answer.trained for answer in answers], mean)
    useful = tuple(answer for answer in answers if answer.advantage and answer.trained.any())
    packs = [tuple(sorted(pack)) for pack in pack_window([a.length for a in useful], budget)]
    if not packs:
        return MiniBatch((), (), ((),) * replicas, weight)
    sizes = np.array([[a.length, a.patches, a.pictures] for a in useful], dtype=np.int64)
    costs = cost.samples(sizes[:, 0], sizes[:, 1], sizes[:, 2])
    each = -(-len(packs) // (replicas * multiple)) * multiple
    work = [float(costs[list(pack)].sum()) for pack in packs] + [0.0] * (each * replicas - len(packs))
    return MiniBatch(useful, tuple(packs), tuple(map(tuple, assign(work, replicas))), weight)


def targets_of(batch: MiniBatch, budget: int) -> dict[tuple[str, ...], Targets]:
    """By the sample ids of each pack; that of an empty pack is ()."""
    made: dict[tuple[str, ...], Targets] = {(): Targets(torch.zeros(budget), torch.zeros(budget))}
    for pack in batch.packs:
        advantages, logprobs = torch.zeros(budget), torch.zeros(budget)
        start = 0
        for i in pack:
            answer = batch.answers[i]
            first = start + answer.group.tokens - 1
            span = slice(first, first + len(answer.rollout.token_ids))
            advantages[span] = answer.advantage
            logprobs[span] = torch.tensor(answer.rollout.logprobs)
            start += aligned(answer.length)
        made[tuple(batch.answers[i].key for i in pack)] = Targets(advantages, logprobs)
    return made


def answer_layout(prompt: Prompt, rollout: Rollout, weights: Floats, turns: Sequence[Prompt] = ()) -> SampleLayout:
    """A prompt and its answer as one sample; labels[P - 1 + j] is token j of the answer, with weights [L]. `turns`:
    the environment's inside the answer. Raises ValueError where they are others than it saw."""
    whole = unrolled(prompt, rollout, turns)
    said = np.array(rollout.token_ids, dtype=np.int64)
    start, length = len(prompt) - 1, len(prompt) + len(said) - 1
    labels = np.zeros(length, dtype=np.int64)
    labels[start:] = said
    loss_weights = np.zeros(length, dtype=np.float32)
    loss_weights[start:] = weights
    return SampleLayout(
        input_ids=whole.input_ids[:-1].numpy(),
        labels=labels,
        loss_weights=loss_weights,
        position_ids=whole.position_ids[:, :-1].numpy(),
        visual_positions=whole.visual_positions.numpy(),
        plans=tuple(medium.plan for medium in whole.media),
    )


def empty_pack(budget: int, pad: int, patch_values: int) -> PackedBatch:
    """Padding alone: keeps a replica in step with those that have more packs."""
    zeros = torch.zeros(budget, dtype=torch.int64)
    return PackedBatch(
        input_ids=torch.full((budget,), pad, dtype=torch.int64),
        labels=zeros,
        loss_weights=torch.zeros(budget),
        position_ids=zeros.expand(3, budget).clone(),
        cu_seqlens=torch.tensor([0, budget], dtype=torch.int32),
        padding=torch.ones(budget, dtype=torch.bool),
        pixel_values=torch.zeros(0, patch_values, dtype=torch.uint8),
        grids=torch.zeros(0, 3, dtype=torch.int64),
        visual_positions=torch.zeros(0, dtype=torch.int64),
        sample_ids=(),
    )


class AnswerPacks:
    """Makes one replica's packs, on the rank that reads for it; a loader for train/feed.py."""

    def __init__(self, files: MediaFiles, pad: int, budget: int, mean: str) -> None:
        self.files, self.pad, self.budget, self.mean = files, pad, budget, mean
        self._waiting: list[PackedBatch] = []
        self._pixels: dict[str, torch.Tensor] = {}

    def make(
        self,
        batch: MiniBatch,
        replica: int,
        prompts: Mapping[str, Prompt],
        turns: Mapping[str, Sequence[Prompt]] | None = None,
    ) -> None:
        """The packs that `next_step` hands out. `turns`: the environment's, by the key of the answer. Raises
        SampleError where a file that was rolled out with changed, or an episode went otherwise."""
        self._waiting = []
        for number in batch.of_replica[replica]:
            if number >= len(batch.packs):
                self._waiting.append(empty_pack(self.budget, self.pad, self.files.vision.patch_values))
                continue
            samples = [self._sample(batch.answers[i], prompts, turns or {}) for i in batch.packs[number]]
            self._waiting.append(collate(samples, self.budget, self.pad, self.files.vision.patch_values))
        self._pixels.clear()

    def _sample(self, answer: Answer, prompts: Mapping[str, Prompt], turns: Mapping[str, Sequence[Prompt]]) -> Sample:
        prompt, later = prompts[answer.group.prompt], turns.get(answer.key, ())
        media = [medium for part in (prompt, *later) for medium in part.media]
        if tuple(m.key for m in media) != answer.rollout.media or len(prompt) != answer.group.tokens:
            raise SampleError(answer.key, "its media or tokens are not those it was rolled out with")
        unread = [m for m in media if m.key not in self._pixels]
        for medium, pixels in zip(unread, self.files.decode(unread) if unread else (), strict=True):
            if isinstance(pixels, SampleError):
                raise pixels
            self._pixels[medium.key] = pixels
        try:
            layout = answer_layout(prompt, answer.rollout, response_weights(answer.trained, self.mean), later)
        except ValueError as error:
            raise SampleError(answer.key, str(error)) from error
        patches = tuple(self._pixels[m.key] for m in media)
        return Sample(answer.key, layout, patches, ("rollout",) * len(patches))

    def next_step(self) -> list[PackedBatch]:
        return self._waiting

    def state_dict(self) -> Json:
        return {}

    def load_state_dict(self, state: Json) -> None: ...
    def close(self) -> None: ...
