"""`glmv score`: one teacher-forced pass over outputs of transformers' Glm4v processor, under any layout.

This is how anyone compares a checkpoint of ours with another engine: the same tensors in, log probabilities, logits and
gradients out. docs/score.md defines them.

Shapes: B rows, S tokens, W vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import lcm
from pathlib import Path

import yaml

from megatron_glmv.checkpoint.reader import open_checkpoint
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.fingerprint import replace_option
from megatron_glmv.config.load import from_dict, to_json
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.data.types import Json
from megatron_glmv.inference.load import inference_config
from megatron_glmv.inference.score_inputs import ScoreInput, read_score_input
from megatron_glmv.inference.score_outputs import write_gradients, write_scores
from megatron_glmv.parallel.launch import RankContext, detect, launch
from megatron_glmv.parallel.topology import Topology
from megatron_glmv.stages.run import PRELOAD
from megatron_glmv.stages.session import open_session

OPTIONS = ("precision.name", "train.recompute", "platform", "backend")
"""What may be given as key=value beside parallel.X; everything else is the checkpoint's."""


@dataclass(frozen=True)
class Task:
    """Files in and out."""

    ckpt: Path
    input: Path
    out: Path
    logits: bool = False
    """Write the logits too, [B, S, W] fp32."""
    grads: Path | None = None
    """Where the gradients go; None: forward pass only."""
    verify: bool = True
    """Compare every file of the checkpoint with its sha256."""


def main(task: Task, overrides: Sequence[str] = ()) -> Json:
    """Scores and returns the summary (also in the metadata of `out`); on a rank other than 0, an empty one.

    Raises ReadError, MismatchError, ConfigError, DataError, each with its exit code, and RankFailed with that of the
    rank that failed.
    """
    context = detect()
    config, _ = prepare(task, overrides, context.world if context else None)
    for target in filter(None, (task.out, task.grads)):
        target.resolve().parent.mkdir(parents=True, exist_ok=True)
    if context is not None:
        return score_rank(task, config, None, context)
    world = Topology.resolve(config.parallel, None).world
    with _folder(task) as folder:
        if world == 1:
            rendezvous = (folder / "rendezvous").resolve().as_uri()
            return score_rank(task, config, folder, RankContext(0, 1, 0, rendezvous))
        return launch(partial(score_rank, task, config, folder), world, preload=PRELOAD)[0]


@contextmanager
def _folder(task: Task) -> Iterator[Path]:
    """Where ranks leave their parts: beside the result, for that is on a file system that they share."""
    with tempfile.TemporaryDirectory(prefix=f".{task.out.name}-", dir=task.out.resolve().parent) as name:
        yield Path(name)


def prepare(task: Task, overrides: Sequence[str], world: int | None) -> tuple[Config, ScoreInput]:
    """The config (the checkpoint's model, the layout asked for, packs as long as the longest row) and the rows."""
    config = _with_overrides(inference_config(open_checkpoint(task.ckpt)), overrides)
    batch = read_score_input(task.input, config.model)
    topology = Topology.resolve(config.parallel, world)
    unit = lcm(16, topology.tensor * topology.context)
    packs = topology.data * (topology.pipeline if topology.virtual_pipeline > 1 else 1)
    for option, value in {
        "data.path": str(task.input),
        "data.pack_tokens": -(-batch.longest // unit) * unit,
        "train.global_batch": -(-len(batch.rows) // packs) * packs,
    }.items():
        config = replace_option(config, option, value)
    if config.model.text.moe is not None:  # training's own additions to loss and weights
        config = replace_option(config, "model.text.moe.aux_loss", 0.0)
        config = replace_option(config, "stage.expert_bias", "frozen")
    validate(config, world)
    return config, batch


def _with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    tree = to_json(config)
    for override in overrides:
        option, given, text = override.partition("=")
        option = "precision.name" if option == "precision" else option
        if not given or (option not in OPTIONS and not option.startswith("parallel.")):
            fix = f"parallel.X=N, {', '.join(OPTIONS)}"
            raise ConfigError(option, text or None, "cannot be given here; the rest is the checkpoint's", fix)
        node = tree
        *groups, name = option.split(".")
        for group in groups:
            node = node[group]
        node[name] = yaml.safe_load(text)
    return from_dict(tree)


def score_rank(task: Task, config: Config, folder: Path | None, context: RankContext) -> Json:
    """One rank's part. Rank 0 writes the files and returns the summary. `folder` None: rank 0 makes one for all."""
    with ExitStack() as stack:
        session = stack.enter_context(open_session(config, context))
        import torch.distributed as dist

        from megatron_glmv.inference.score_rank import Scorer

        if folder is None:
            shared = [str(stack.enter_context(_folder(task))) if context.rank == 0 else ""]
            dist.broadcast_object_list(shared, 0)
            folder = Path(shared[0])
        batch = read_score_input(task.input, config.model)
        checkpoint = open_checkpoint(task.ckpt)
        scorer = Scorer(config, session, checkpoint, task.verify, gradients=task.grads is not None)
        nll = scorer.run(batch, folder, task.logits)
        gradients = scorer.save_gradients(folder / "gradients") if task.grads is not None else None
        if context.rank != 0:
            return {}
        summary = {
            "checkpoint": str(checkpoint.path),
            "step": checkpoint.manifest.step,
            "tokens": batch.predicted,
            "mean_nll": nll / max(batch.predicted, 1),
            "layout": session.groups.topology.describe(),
            "precision": config.precision.name,
        }
        write_scores(task.out, batch, folder, summary, config.model.text.vocab if task.logits else None)
        if task.grads is not None and gradients is not None:
            write_gradients(task.grads, open_checkpoint(gradients), config.model, summary)
        return summary
