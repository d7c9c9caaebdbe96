"""One table of names, read in both directions: tensors of transformers' Glm4v and Glm4vMoe, and ours.

Every tensor of ours is made of whole rows of theirs, in another order; nothing is transposed, added or scaled. So one
list of row ranges says everything, and serves slices of weights that do not fit into memory, gradients (the permutation
is linear and orthogonal: a gradient goes the way its weight goes), and weights sent to an inference engine.

A row is one index over all axes before the last of a stack of matrices [E, R, C] -> E x R rows of C, one index of the
first axis of any other tensor. Shapes: E experts, F width of a SwiGLU, H hidden, A query heads, G key-value heads,
D head width, V vocabulary, C encoder width.

    ours                                   theirs
    linear_qkv   [(A + 2G) D, H]           q_proj, k_proj, v_proj; per key-value head: its A/G queries, key, value
                 encoder: [3C, C]          qkv: all queries, all keys, all values
    linear_fc1   [2F, H]                   gate_proj, up_proj, or both in one (gate_up_proj)
    experts' fc1 [E, 2F, H], fc2 [E, H, F] experts.E.*_proj.weight one by one, or fused as in transformers' memory
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.config.schema import ModelConfig

Experts = Literal["single", "fused", "fused.weight"]
"""How routed experts are stored: one by one (on disk), stacked (transformers 5 in memory; older re-saved files), or
stacked under names that end in .weight (files of some tools)."""
EXPERTS: tuple[Experts, ...] = ("single", "fused", "fused.weight")


@dataclass(frozen=True)
class Shaped:
    """A tensor by name. `exact`: always float32, on disk too, because rounding it sends tokens to other experts."""

    name: str
    shape: tuple[int, ...]
    exact: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Span:
    """`rows` rows from `start` of ours, which are the rows from `offset` of their tensor `name`."""

    start: int
    name: str
    offset: int
    rows: int


@dataclass(frozen=True)
class Entry:
    """A tensor of ours and what it is made of; the spans follow each other without a gap."""

    ours: Shaped
    spans: tuple[Span, ...]
    width: int
    """Elements of a row."""

    @property
    def rows(self) -> int:
        return self.ours.numel // self.width

    def within(self, start: int, rows: int) -> Iterator[Span]:
        """The parts of the spans that lie in rows `start` .. `start + rows` of ours, in order."""
        first = bisect_right(self.spans, start, key=lambda span: span.start) - 1
        for span in self.spans[max(first, 0) :]:
            low, high = max(start, span.start), min(start + rows, span.start + span.rows)
            if span.start >= start + rows:
                return
            if low < high:
                yield Span(low, span.name, span.offset + low - span.start, high - low)


@dataclass(frozen=True)
class NameMapping:
    """The table for one model. `theirs` has their tensors in the order of ours."""

    entries: tuple[Entry, ...]
    theirs: dict[str, Shaped]

    @cached_property
    def ours(self) -> dict[str, Shaped]:
        return {entry.ours.name: entry.ours for entry in self.entries}

    @cached_property
    def entry(self) -> dict[str, Entry]:
        """By our name."""
        return {entry.ours.name: entry for entry in self.entries}

    @cached_property
    def sources(self) -> dict[str, Entry]:
        """By their name: the one tensor of ours that a tensor of theirs lies in; its spans are theirs alone, in the
        order of their rows."""
        found: dict[str, tuple[Entry, list[Span]]] = {}
        for entry in self.entries:
            for span in entry.spans:
                found.setdefault(span.name, (entry, []))[1].append(span)
        return {
            name: Entry(entry.ours, tuple(sorted(spans, key=lambda span: span.offset)), entry.width)
            for name, (entry, spans) in found.items()
        }

    def to_ours(self, theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors (weights or gradients) under our names. Raises MismatchError that lists what does not fit."""
        check_shapes(self.theirs, {name: tuple(tensor.shape) for name, tensor in theirs.items()}, "given")
        return {entry.ours.name: self.tensor_of_ours(entry.ours.name, theirs) for entry in self.entries}

    def to_theirs(self, ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors (weights or gradients) under their names. Raises MismatchError that lists what does not fit."""
        check_shapes(self.ours, {name: tuple(tensor.shape) for name, tensor in ours.items()}, "given")
        return {name: self.tensor_of_theirs(name, ours[entry.ours.name]) for name, entry in self.sources.items()}

    def tensor_of_ours(self, name: str, theirs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One tensor of ours from those of theirs that it is made of."""
        entry = self.entry[name]
        parts = [
            theirs[span.name].reshape(-1, entry.width)[span.offset : span.offset + span.rows] for span in entry.spans
        ]
        return torch.cat(parts).view(entry.ours.shape)

    def tensor_of_theirs(self, name: str, ours: torch.Tensor) -> torch.Tensor:
        """One tensor of theirs from the tensor of ours that `sources[name]` says."""
        entry = self.sources[name]
        rows = ours.reshape(-1, entry.width)
        parts = [rows[span.start : span.start + span.rows] for span in entry.spans]
        return torch.cat(parts).view(self.theirs[name].shape)


def name_mapping(model: ModelConfig, experts: Experts = "single", text_only: bool = False) -> NameMapping:
    """The table for `model`, in the order in which the tensors are used: encoder, embedding, layers, head.

    `text_only`: a text model of the same family (GLM-4.5-Air), whose names have no `language_model`; no encoder.
    """
    table = _Table(model, experts, "model." if text_only else "model.language_model.")
    if not text_only:
        table.vision()
    table.text()
    return NameMapping(tuple(table.entries), table.theirs)


def stored_experts(names: Iterable[str]) -> Experts:
    """Which way the routed experts are stored in a checkpoint of theirs, by its names."""
    for name in names:
        if name.endswith(".mlp.experts.gate_up_proj"):
            return "fused"
        if name.endswith(".mlp.experts.gate_up_proj.weight"):
            return "fused.weight"
    return "single"


def check_shapes(wanted: Mapping[str, Shaped], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises MismatchError that lists the tensors that are missing, unknown, or of another shape."""
    problems = [f"{name} {tensor.shape} is missing" for name, tensor in wanted.items() if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name]} instead of {tensor.shape}"
        for name, tensor in wanted.items()
        if name in found and found[name] != tensor.shape
    ]
    if problems:
        shown = "\n  ".join(problems[:LISTED])
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise MismatchError(f"{where}: {len(problems)} tensors do not fit the model:\n  {shown}{more}")


LISTED = 40
"""Problems that an error lists; a wrong model has thousands."""


class _Table:
    def __init__(self, model: ModelConfig, experts: Experts, text_prefix: str) -> None:
        self.model, self.experts, self.prefix = model, experts, text_prefix
        self.entries: list[Entry] = []
        self.theirs: dict[str, Shaped] = {}

    def vision(self) -> None:
        vision, out = self.model.vision, self.model.text.hidden
        ours, theirs, width = "vision.", "model.visual.", vision.hidden
        kernel = (3, vision.temporal_patch, vision.patch, vision.patch)
        self._same(f"{ours}patch_embed.weight", f"{theirs}patch_embed.proj.weight", width, *kernel)
        self._same(f"{ours}patch_embed.bias", f"{theirs}patch_embed.proj.bias", width)
        self._same(f"{ours}post_conv_layernorm.weight", f"{theirs}post_conv_layernorm.weight", width)
        grid = vision.position_grid**2
        self._same(f"{ours}position_embedding.weight", f"{theirs}embeddings.position_embedding.weight", grid, width)
        for n in range(vision.depth):
            block, theirs_block = f"{ours}blocks.layers.{n}.", f"{theirs}blocks.{n}."
            self._same(f"{block}self_attention.linear_qkv.layer_norm_weight", f"{theirs_block}norm1.weight", width)
            self._heads(f"{block}self_attention.linear_qkv.weight", f"{theirs_block}attn.qkv.weight")
            self._same(f"{block}self_attention.linear_proj.weight", f"{theirs_block}attn.proj.weight", width, width)
            self._same(f"{block}mlp.linear_fc1.layer_norm_weight", f"{theirs_block}norm2.weight", width)
            self._mlp(f"{block}mlp.", f"{theirs_block}mlp.", vision.ffn, width)
        self._same(f"{ours}blocks.final_layernorm.weight", f"{theirs}post_layernorm.weight", width)
        merge = (width, vision.merge, vision.merge)
        self._same(f"{ours}downsample.weight", f"{theirs}downsample.weight", out, *merge)
        self._same(f"{ours}downsample.bias", f"{theirs}downsample.bias", out)
        self._same(f"{ours}merger.proj.weight", f"{theirs}merger.proj.weight", out, out)
        for kind in ("weight", "bias"):
            norm = f"merger.post_projection_norm.{kind}"
            self._same(f"{ours}{norm}", f"{theirs}{norm}", out)
        self._mlp(f"{ours}merger.mlp.", f"{theirs}merger.", vision.merger_ffn, out)

    def text(self) -> None:
        text = self.model.text
        ours, hidden = "language.", text.hidden
        embedding = (text.vocab, hidden)
        self._same(f"{ours}embedding.word_embeddings.weight", f"{self.prefix}embed_tokens.weight", *embedding)
        for n in range(text.layers):
            self._layer(f"{ours}decoder.layers.{n}.", f"{self.prefix}layers.{n}.", n)
        self._same(f"{ours}decoder.final_layernorm.weight", f"{self.prefix}norm.weight", hidden)
        if self.model.mtp.layers:
            self._prediction(f"{ours}mtp.layers.0.", f"{self.prefix}layers.{text.layers}.")
        self._same(f"{ours}output_layer.weight", "lm_head.weight", *embedding)

    def _prediction(self, ours: str, theirs: str) -> None:
        """The layer behind the last (prediction.py)."""
        hidden = self.model.text.hidden
        for name in ("enorm", "hnorm"):
            self._same(f"{ours}{name}.weight", f"{theirs}{name}.weight", hidden)
        self._same(f"{ours}eh_proj.weight", f"{theirs}eh_proj.weight", hidden, 2 * hidden)
        self._layer(f"{ours}transformer_layer.", theirs, self.model.text.layers)
        self._same(f"{ours}final_layernorm.weight", f"{theirs}shared_head.norm.weight", hidden)

    def _layer(self, ours: str, theirs: str, n: int) -> None:
        text = self.model.text
        hidden, heads = text.hidden, text.heads * text.head_dim
        sparse = text.moe is not None and n >= text.moe.first_dense
        qkv, attention = f"{ours}self_attention.linear_qkv.", f"{theirs}self_attn."
        self._same(f"{qkv}layer_norm_weight", f"{theirs}input_layernorm.weight", hidden)
        self._groups(f"{qkv}weight", attention, "weight", hidden)
        self._groups(f"{qkv}bias", attention, "bias")
        self._same(f"{ours}self_attention.linear_proj.weight", f"{attention}o_proj.weight", hidden, heads)
        before_mlp = "pre_mlp_layernorm.weight" if sparse else "mlp.linear_fc1.layer_norm_weight"
        self._same(f"{ours}{before_mlp}", f"{theirs}post_attention_layernorm.weight", hidden)
        if text.sandwich_norm:
            for name in ("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"):
                self._same(f"{ours}{name}", f"{theirs}{name}", hidden)
        if sparse:
            self._sparse(f"{ours}mlp.", f"{theirs}mlp.")
        elif text.moe is not None:
            self._mlp(f"{ours}mlp.", f"{theirs}mlp.", text.ffn, hidden)
        else:  # GLM-4.1V has gate and up in one matrix, as we do
            self._same(f"{ours}mlp.linear_fc1.weight", f"{theirs}mlp.gate_up_proj.weight", 2 * text.ffn, hidden)
            self._same(f"{ours}mlp.linear_fc2.weight", f"{theirs}mlp.down_proj.weight", hidden, text.ffn)

    def _sparse(self, ours: str, theirs: str) -> None:
        moe, hidden = self.model.text.moe, self.model.text.hidden
        assert moe is not None
        self._same(f"{ours}router.weight", f"{theirs}gate.weight", moe.experts, hidden)
        self._same(f"{ours}router.expert_bias", f"{theirs}gate.e_score_correction_bias", moe.experts, exact=True)
        fc1, fc2 = (f"{ours}experts.experts.linear_{name}.weight" for name in ("fc1", "fc2"))
        up, down = (moe.experts, 2 * moe.ffn, hidden), (moe.experts, hidden, moe.ffn)
        if self.experts == "single":
            each = [f"{theirs}experts.{e}." for e in range(moe.experts)]
            halves = [f"{e}{half}_proj.weight" for e in each for half in ("gate", "up")]
            self._rows(fc1, up, [(name, (moe.ffn, hidden)) for name in halves])
            self._rows(fc2, down, [(f"{e}down_proj.weight", (hidden, moe.ffn)) for e in each])
        else:
            end = ".weight" if self.experts == "fused.weight" else ""
            self._same(fc1, f"{theirs}experts.gate_up_proj{end}", *up)
            self._same(fc2, f"{theirs}experts.down_proj{end}", *down)
        self._mlp(f"{ours}shared_experts.", f"{theirs}shared_experts.", moe.shared_ffn, hidden)

    def _mlp(self, ours: str, theirs: str, ffn: int, hidden: int) -> None:
        halves = [(f"{theirs}{half}_proj.weight", (ffn, hidden)) for half in ("gate", "up")]
        self._rows(f"{ours}linear_fc1.weight", (2 * ffn, hidden), halves)
        self._same(f"{ours}linear_fc2.weight", f"{theirs}down_proj.weight", hidden, ffn)

    def _heads(self, ours: str, theirs: str) -> None:
        """The encoder's attention: theirs has all queries, then all keys, all values; ours has them head by head."""
        width, rows = self.model.vision.hidden, self.model.vision.head_dim
        self.theirs[theirs] = Shaped(theirs, (3 * width, width))
        places = [part * width + head * rows for head in range(width // rows) for part in range(3)]
        spans = tuple(Span(i * rows, theirs, place, rows) for i, place in enumerate(places))
        self.entries.append(Entry(Shaped(ours, (3 * width, width)), spans, width))

    def _groups(self, ours: str, theirs: str, kind: str, *columns: int) -> None:
        """The decoder's attention: ours has, for each key-value head, its queries, then its key, then its value."""
        text = self.model.text
        rows = {"q": text.heads // text.kv_heads * text.head_dim, "k": text.head_dim, "v": text.head_dim}
        for part, count in rows.items():
            name = f"{theirs}{part}_proj.{kind}"
            self.theirs[name] = Shaped(name, (count * text.kv_heads, *columns))
        spans, at = [], 0
        for group in range(text.kv_heads):
            for part, count in rows.items():
                spans.append(Span(at, f"{theirs}{part}_proj.{kind}", group * count, count))
                at += count
        self.entries.append(Entry(Shaped(ours, (at, *columns)), tuple(spans), math.prod(columns)))

    def _rows(self, ours: str, shape: tuple[int, ...], theirs: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Tensors of theirs one behind the other."""
        spans, at = [], 0
        for name, part in theirs:
            self.theirs[name] = Shaped(name, part)
            rows = math.prod(part[:-1])
            spans.append(Span(at, name, 0, rows))
            at += rows
        self.entries.append(Entry(Shaped(ours, shape), tuple(spans), shape[-1]))

    def _same(self, ours: str, theirs: str, *shape: int, exact: bool = False) -> None:
        self.theirs[theirs] = Shaped(theirs, shape, exact)
        width = shape[-1] if len(shape) == 3 else math.prod(shape[1:])
        self.entries.append(Entry(Shaped(ours, shape, exact), (Span(0, theirs, 0, math.prod(shape) // width),), width))
