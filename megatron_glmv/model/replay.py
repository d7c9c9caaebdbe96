"""Routing replay: experts that were chosen in a rollout are chosen again when it is trained on.

A router whose scores nearly tie sends a token elsewhere for a difference in the last bit, and the rollout's
probabilities are then not those of the model that is trained (Megatron-LM #4168 measured one router in ten; mcore's own
replay is a list of the process in the order of construction, which two models, pipelines and recomputation disturb).
Here the choice goes with its tokens, as rows of the routing mask (router.py): sliced with them among sequence and
context parallel ranks, handed to every pipeline stage, and there again when a layer is recomputed.

Shapes: T tokens, L layers with experts, K experts of a token, D binary digits of an expert's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

NONE = -1
"""In place of an expert: this token is routed by its scores."""


@dataclass(frozen=True)
class ReplayRows:
    """How choices lie in a routing mask: a row that says whether there is one, then D rows for each slot of each
    layer."""

    layers: int
    topk: int
    experts: int

    @property
    def digits(self) -> int:
        return max(1, (self.experts - 1).bit_length())

    @property
    def count(self) -> int:
        return 1 + self.layers * self.topk * self.digits

    def write(self, chosen: torch.Tensor) -> torch.Tensor:
        """[T, L, K] integers, NONE where nothing was recorded -> [rows, T] bool."""
        given = (chosen >= 0).all(dim=2).all(dim=1)
        powers = torch.arange(self.digits, device=chosen.device)
        digits = chosen.clamp(min=0).to(torch.int64)[..., None] >> powers & 1
        return torch.cat([given[None], digits.reshape(len(chosen), -1).bool().T])

    def read(self, rows: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, rows] -> which tokens have a choice [T], and that of a layer [T, K]."""
        width = self.topk * self.digits
        mine = rows[:, 1 + layer * width : 1 + (layer + 1) * width].reshape(len(rows), self.topk, self.digits)
        powers = 2 ** torch.arange(self.digits, device=rows.device)
        return rows[:, 0], (mine * powers).sum(dim=2)


class Chooser:
    """What megatron-core asks for a token's experts (`router_replay` of its TopKRouter). One in each of our routers."""

    def __init__(self) -> None:
        self.rows: ReplayRows | None = None
        """What the routing mask brings, where choices are replayed."""
        self.layer = 0
        """Number among the layers with experts."""
        self.recorded: list[torch.Tensor] | None = None
        """[T, K] of each pass, where choices are recorded."""
        self.differing = 0.0
        """Tokens that their scores would have sent to other experts than those that were replayed."""
        self.replayed = 0.0
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None

    def take(self, mask: torch.Tensor) -> torch.Tensor:
        """The routing mask [T, R] without the rows that are for this; they hold for the next choice."""
        if self.rows is None:
            return mask
        self._given = self.rows.read(mask[:, 1 : 1 + self.rows.count], self.layer)
        return torch.cat([mask[:, :1], mask[:, 1 + self.rows.count :]], dim=1)

    def get_replay_topk(
        self, scores: torch.Tensor, topk: int, groups: Any, group_topk: Any, default: Callable[..., Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """scores [T, E] -> values and numbers of the experts, [T, K] both."""
        values, chosen = default(scores, topk, num_groups=groups, group_topk=group_topk)
        if self._given is not None:
            given, replayed = self._given
            self._given = None
            with torch.no_grad():
                other = (chosen.sort(dim=1).values != replayed.sort(dim=1).values).any(dim=1)
                self.differing += float((other & given).sum())
                self.replayed += float(given.sum())
            chosen = torch.where(given[:, None], replayed, chosen)
            values = scores.gather(1, chosen)
        if self.recorded is not None:
            self.recorded.append(chosen.detach())
        return values, chosen


def _routers(chunk: Any) -> Iterator[Any]:
    """The decoder's, in the order of its layers; a prediction layer's is none of them."""
    for module in getattr(chunk, "language", chunk).decoder.modules():
        if isinstance(getattr(module, "router_replay", None), Chooser):
            yield module


def choosers(chunk: Any) -> Iterator[Chooser]:
    """Of a part of the model, or of a language model, in the order of its layers."""
    for router in _routers(chunk):
        yield router.router_replay


def replay(chunks: list[Any], rows: ReplayRows) -> None:
    """From here on the routing masks that are given to these chunks (parts of the model, whatever their stage) have
    these rows."""
    for router in (router for chunk in chunks for router in _routers(chunk)):
        first = router.config.num_layers - rows.layers  # dense layers come before those with experts
        router.router_replay.rows, router.router_replay.layer = rows, router.layer_number - 1 - first


def take_differing(chunks: list[Any]) -> tuple[float, float]:
    """(differing, replayed) tokens of all routers since the last call."""
    found = [chooser for chunk in chunks for chooser in choosers(chunk)]
    sums = sum(c.differing for c in found), sum(c.replayed for c in found)
    for chooser in found:
        chooser.differing = chooser.replayed = 0.0
    return float(sums[0]), float(sums[1])
