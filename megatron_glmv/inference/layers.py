"""`glmv convert verify --logits`: our model against transformers, layer by layer, with a layer in memory at a time.

Weights that are equal in every bit say nothing about a table of names that is wrong in both directions. Here
transformers computes with one directory (layers_reference.py, a process of its own), our model with the other
checkpoint:

    alone      each part gets what transformers' part got, so that a difference belongs to that part and to no other
    chained    each layer gets what ours before it gave, up to the logits

Of a sparse layer the router (its biased scores) and every expert (one token each, whoever would be routed to it) are
parts of their own. A part agrees if no token's output differs by more than BOUND of its norm: fp32 sums over a few
thousand products in another order differ by some 1e-6 of the norm, and a wrong or permuted row by 1e-2 and more.

Shapes: L tokens of a row, T with padding to 16, H decoder width, E experts, W vocabulary, N patches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.hf.mapping import LISTED, name_mapping
from megatron_glmv.checkpoint.hf.memory import Watch, readable
from megatron_glmv.checkpoint.hf.rows import CONFIG, open_rows
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import from_dict
from megatron_glmv.config.schema import Config, ModelConfig, MTPConfig
from megatron_glmv.data.packing import aligned
from megatron_glmv.inference.layers_input import make_input
from megatron_glmv.inference.score_inputs import Row, ScoreInput, as_pack, read_score_input
from megatron_glmv.resilience.exit_codes import ExitCode
from megatron_glmv.stages.session import single_process

if TYPE_CHECKING:
    from megatron_glmv.inference.layers_ours import Streamed

Tensors = dict[str, torch.Tensor]
REFERENCE = Path(__file__).with_name("layers_reference.py")
BOUND = 1e-4
"""Of the norm of a token's output; of a router's score (0 to 1, plus the bias) absolutely, a tenth of it."""


@dataclass
class LayerVerdict:
    """What was compared, and which parts differ."""

    transformers: str
    tokens: int
    parts: int = 0
    worst: float = 0.0
    """Largest relative difference of a part alone."""
    differences: dict[str, float] = field(default_factory=dict)
    """Of parts that do not agree, by the name of transformers' module."""
    chained: dict[str, float] = field(default_factory=dict)
    """Relative difference behind each layer, each on what ours before it gave."""
    logits: float = 0.0
    """Largest difference of a logit, over max(1, |logit|), at the end of the chain."""
    ties: int = 0
    """Tokens that a layer sent to other experts because two scores were equal within the bound; their outputs in that
    layer are not compared."""
    memory_ours: int = 0
    memory_theirs: int = 0

    def add(self, part: str, difference: float, bound: float = BOUND) -> bool:
        """Whether it agrees."""
        self.parts += 1
        agrees = difference <= bound  # a NaN does not
        if agrees:
            self.worst = max(self.worst, difference)
        else:
            self.differences[part] = difference
        return agrees

    def __str__(self) -> str:
        ties = f", {self.ties} ties between experts left out" if self.ties else ""
        memory = f"memory {readable(self.memory_ours)} (transformers {readable(self.memory_theirs)}) at most"
        head = f"{self.parts} parts on {self.tokens} tokens{ties}, logits at the end of the chain {self.logits:.1e}"
        against = f"against transformers {self.transformers}; {memory}"
        if not self.differences:
            return f"equal activations ({self.worst:.1e} of a token's norm at most): {head}, {against}"
        shown = [f"  {part}: {size:.1e} of a token's norm" for part, size in list(self.differences.items())[:LISTED]]
        if len(self.differences) > LISTED:
            shown.append(f"  and {len(self.differences) - LISTED} more")
        return "\n".join([f"{len(self.differences)} parts differ: {head}, {against}", *shown])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "equal": not self.differences}

    @property
    def exit_code(self) -> int:
        return int(ExitCode.CORRUPT if self.differences else ExitCode.OK)


def compare_layers(
    a: Path,
    b: Path,
    *,
    given: Path | None = None,
    round_to: str = "",
    memory_limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> LayerVerdict:
    """transformers computes with `a` (with `b`, where only that is a directory of transformers'), our model with the
    other one. `given`: outputs of transformers' processor (docs/score.md); None: a picture among random tokens.

    Raises ConfigError, ReadError, MismatchError, DataError.
    """
    theirs, mine = (a, b) if (a / CONFIG).is_file() else (b, a)
    if not (theirs / CONFIG).is_file():
        raise ConfigError("--logits", None, f"neither {a} nor {b} is a directory of transformers'", "export one first")
    reference, ours = open_rows(theirs), open_rows(mine)
    need = _largest(ours.model)
    if memory_limit and need > memory_limit:
        raise ConfigError("--memory-limit", memory_limit, f"--logits holds a layer in fp32, {need} bytes", "raise it")
    say(f"transformers with {theirs}, our model with {mine}; at most {readable(need)} of memory each, in turn")
    with tempfile.TemporaryDirectory(prefix="glmv-layers-") as folder:
        job = Path(folder)
        path = given or make_input(reference.model, theirs, job / "input.safetensors")
        batch = read_score_input(path, ours.model)
        _one_kind_of_media(path)
        report = _run_reference(job, theirs, path, round_to == "bf16")
        config = _config(ours.model)
        verdict = LayerVerdict(report["transformers"], sum(len(row) for row in batch.rows))
        verdict.memory_theirs = report["peak_memory"]
        with single_process(config) as session, Watch() as watch, torch.no_grad():
            from megatron_glmv.inference.layers_ours import Streamed

            Comparison(Streamed(config, session, ours, round_to == "bf16"), batch, job / "theirs", verdict).run(say)
        verdict.memory_ours = watch.peak
    return verdict


class Comparison:
    """Goes through the model once."""

    def __init__(self, ours: Streamed, batch: ScoreInput, theirs: Path, verdict: LayerVerdict) -> None:
        self.ours, self.batch, self.theirs, self.verdict = ours, batch, theirs, verdict
        values = ours.config.model.vision.patch_values
        self.packs = [as_pack(row, aligned(len(row)), values) for row in batch.rows]
        self.chain: list[torch.Tensor] = []
        """[T, 1, H] of each row."""

    def run(self, say: Callable[[str], None]) -> None:
        self._embedding()
        layers = self.ours.config.model.text.layers
        for n in range(layers):
            self._layer(n, load_file(self.theirs / f"layer.{n}.safetensors"))
            say(f"layer {n + 1} of {layers}: {self.verdict.chained[f'model.language_model.layers.{n}']:.1e}")
        self._head(load_file(self.theirs / f"layer.{layers - 1}.safetensors"))

    def _embedding(self) -> None:
        """Pictures, then their places among the tokens' embeddings."""
        first, theirs, chained = self.ours.first(), dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        if sum(len(row.grids) for row in self.batch.rows):
            theirs = load_file(self.theirs / "vision.safetensors")
            pixels = torch.cat([row.pixel_values for row in self.batch.rows])
            frames = [(h, w) for row in self.batch.rows for _, h, w in row.grids.tolist()]
            chained = first.encode(pixels, frames, {})
            alone = first.encode(pixels, frames, theirs)
            names = {"embedded": "model.visual.patch_embed", "features": "model.visual.merger"}
            for name, tensor in theirs.items():
                kind, _, number = name.partition(".")
                self.verdict.add(names.get(kind, f"model.visual.blocks.{number}"), relative(alone[name], tensor))
            self.verdict.chained["model.visual"] = relative(chained["features"], theirs["features"])
        expected = load_file(self.theirs / "embedding.safetensors")["output"]
        counts = [len(row.visual_positions) for row in self.batch.rows]
        features = torch.split(theirs.get("features", torch.empty(0)), counts)
        largest = 0.0
        for row, pack, mine in zip(self.batch.rows, self.packs, features, strict=True):
            hidden = first.embed(pack, mine if len(mine) else None)
            largest = worse(largest, relative(hidden[: len(row), 0], self._of(expected, row)))
        self.verdict.add("model.language_model.embed_tokens", largest)
        features = torch.split(chained.get("features", torch.empty(0)), counts)
        for pack, mine in zip(self.packs, features, strict=True):
            self.chain.append(first.embed(pack, mine if len(mine) else None))
        first.drop()

    def _layer(self, n: int, theirs: Tensors) -> None:
        layer, name = self.ours.layer(n), f"model.language_model.layers.{n}"
        agrees = True
        if "scores" in theirs:
            scores = layer.scores(theirs["gate_input"].flatten(0, -2)).view(theirs["scores"].shape)
            difference = max(float((self._of(scores, row) - self._of(theirs["scores"], row)).abs().max())
                             for row in self.batch.rows)  # fmt: skip
            agrees = self.verdict.add(f"{name}.mlp.gate", difference, BOUND / 10)
            found = layer.each_expert(theirs["expert_input"])
            for e, (x, y) in enumerate(zip(found, theirs["expert_output"], strict=True)):
                agrees &= self.verdict.add(f"{name}.mlp.experts.{e}", relative(x[None], y[None]))
        largest: dict[str, float] = {"attention": 0.0, "mlp": 0.0}
        chained = 0.0
        for i, (row, pack) in enumerate(zip(self.batch.rows, self.packs, strict=True)):
            given = torch.zeros_like(self.chain[i])
            given[: len(row), 0] = self._of(theirs["input"], row)
            alone = layer.run(pack, given)
            same = self._same_experts(alone, theirs, row)
            for part in largest:
                found, wanted = alone[part][: len(row)], self._of(theirs[part], row)
                kept = same if part == "mlp" else slice(None)
                largest[part] = worse(largest[part], relative(found[kept], wanted[kept]))
            self.chain[i] = layer.run(pack, self.chain[i])["output"][:, None]
            chained = worse(chained, relative(self.chain[i][: len(row), 0], self._of(theirs["output"], row)))
        agrees &= self.verdict.add(f"{name}.self_attn", largest["attention"])
        if agrees:  # otherwise what the MLP got, or gave, is wrong already
            self.verdict.add(f"{name}.mlp", largest["mlp"])
        self.verdict.chained[name] = chained

    def _same_experts(self, found: Tensors, theirs: Tensors, row: Row) -> torch.Tensor:
        """[L] bool: tokens whose choice of experts does not hang on a difference that rounding makes."""
        if "scores" not in theirs:
            return torch.ones(len(row), dtype=torch.bool)
        chosen = found["chosen"][: len(row)]
        scores = self._of(theirs["scores"], row).sort(dim=-1, descending=True)
        count = int(chosen[0].sum())
        wanted = torch.zeros_like(chosen).scatter(1, scores.indices[:, :count], True)
        close = scores.values[:, count - 1] - scores.values[:, count] <= BOUND / 10 if count < chosen.shape[1] else 0
        tied = (chosen != wanted).any(dim=1) & torch.as_tensor(close)
        self.verdict.ties += int(tied.sum())
        return ~tied

    def _head(self, last: Tensors) -> None:
        head = self.ours.head()
        expected = load_file(self.theirs / "head.safetensors")["logits"]
        alone = 0.0
        for row, pack, hidden in zip(self.batch.rows, self.packs, self.chain, strict=True):
            wanted = self._of(expected, row)
            given = torch.zeros_like(hidden)
            given[: len(row), 0] = self._of(last["output"], row)
            alone = worse(alone, relative(head.logits(pack, given)[: len(row)], wanted))
            found = head.logits(pack, hidden)[: len(row)]
            difference = ((found - wanted).abs() / wanted.abs().clamp(min=1)).max()
            self.verdict.logits = worse(self.verdict.logits, float(difference))
        self.verdict.add("lm_head", alone)

    @staticmethod
    def _of(tensor: torch.Tensor, row: Row) -> torch.Tensor:
        """[B, S, ...] -> [L, ...]: the tokens of a row that are not padding."""
        return tensor[row.number, row.columns]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest norm of a difference over the norm of what it should be, over the rows of [n, width]; NaN stays NaN."""
    if not len(wanted):
        return 0.0
    norms = wanted.norm(dim=-1)
    return float(((found - wanted).norm(dim=-1) / norms.clamp(min=1e-20)).max())


def worse(a: float, b: float) -> float:
    """The larger, a NaN above all."""
    return b if b != b or b > a else a


def _run_reference(job: Path, directory: Path, given: Path, rounded: bool) -> dict[str, Any]:
    spec = {"directory": str(directory.resolve()), "input": str(given.resolve()), "rounded": rounded}
    (job / "job.json").write_text(json.dumps(spec))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", str(REFERENCE), str(job)]  # -P: the files beside it are not modules for it
    done = subprocess.run(command, env={**os.environ, **offline}, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        if "transformers" in last and "No module" in last:
            raise ConfigError("--logits", None, "needs transformers", "pip install 'megatron-glmv[verify]'")
        raise ReadError(f"transformers cannot compute with {directory}: {last}")
    report: dict[str, Any] = json.loads((job / "theirs.json").read_text())
    return report


def _one_kind_of_media(path: Path) -> None:
    names: Mapping[str, Any] = load_file(path)
    if "pixel_values" in names and "pixel_values_videos" in names:
        raise ConfigError("--input", path, "has images and videos, which transformers' forward takes one at a time")


def _config(model: ModelConfig) -> Config:
    tree = {"experiment": "verify", "platform": "cpu", "backend": "torch", "precision": {"name": "fp32"}}
    return from_dict({**tree, "model": asdict(replace(model, mtp=MTPConfig()))})  # transformers has no such layer


def _largest(model: ModelConfig) -> int:
    """Bytes of the largest unit in fp32, and what a process with torch and megatron-core takes besides."""
    sizes: dict[str, int] = {}
    for name, shaped in name_mapping(model).ours.items():
        parts = name.split(".")
        unit = "first" if parts[0] == "vision" or parts[1] == "embedding" else "head"
        unit = parts[3] if parts[2] == "layers" and parts[0] == "language" else unit
        sizes[unit] = sizes.get(unit, 0) + 4 * shaped.numel
    return max(sizes.values()) + (1 << 30)
