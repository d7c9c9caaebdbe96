"""The rules of the model's sizes, the optimizer, the schedule and the precision. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from .problem import Problem, divisors, near
from .schema import KINDS, PARTS, SINKS, Config


def model_rules(config: Config, world: int | None) -> Iterator[Problem]:
    text, vision, moe = config.model.text, config.model.vision, config.model.text.moe
    if text.heads % text.kv_heads:
        yield Problem(
            "kv_heads",
            "model.text.kv_heads",
            text.kv_heads,
            f"has to divide heads = {text.heads}",
            (("model.text.kv_heads", near(text.kv_heads, divisors(text.heads))),),
        )
    pairs = text.head_dim * text.rotary_percent / 2
    if pairs != int(pairs) or pairs < 1:
        yield Problem(
            "rotary_percent",
            "model.text.rotary_percent",
            text.rotary_percent,
            f"x head_dim = {text.head_dim} has to be a whole, even number",
            (("model.text.rotary_percent", near(text.rotary_percent, (0.25, 0.5, 1.0))),),
        )
    elif sum(text.mrope_section) != int(pairs):
        share = int(pairs) // 4
        rest = int(pairs) - share
        yield Problem(
            "mrope_section",
            "model.text.mrope_section",
            text.mrope_section,
            f"sums to {sum(text.mrope_section)}; head_dim x rotary_percent / 2 is {int(pairs)}",
            (("model.text.mrope_section", [(share, rest // 2, rest - rest // 2)]),),
        )
    if vision.hidden % vision.heads or vision.head_dim % 4:
        fits = [n for n in divisors(vision.hidden) if vision.hidden // n % 4 == 0]
        yield Problem(
            "vision.heads",
            "model.vision.heads",
            vision.heads,
            f"has to divide hidden = {vision.hidden} into heads of a multiple of 4 (2-D rotary positions)",
            (("model.vision.heads", near(vision.heads, fits)),),
        )
    if moe is not None and moe.topk > moe.experts:
        yield Problem(
            "topk",
            "model.text.moe.topk",
            moe.topk,
            f"is more than experts = {moe.experts}",
            (("model.text.moe.topk", [moe.experts]),),
        )
    if moe is not None and moe.first_dense >= text.layers:
        yield Problem(
            "first_dense",
            "model.text.moe.first_dense",
            moe.first_dense,
            f"leaves none of the {text.layers} layers sparse",
            (("model.text.moe.first_dense", [text.layers - 1]),),
        )
    yield from _prediction_rules(config)


def _prediction_rules(config: Config) -> Iterator[Problem]:
    layers = config.model.mtp.layers
    if layers == 0:
        return
    wrong = ""
    if layers > 1:
        wrong = "is more than one prediction layer, which no model of this family has"
    elif config.model.text.moe is None:
        wrong = "is for GLM-4.5V: the text models that GLM-4.1V started from have no prediction layer"
    elif config.stage.name == "rlcs":
        wrong = "would stand still: RLCS trains on sampled answers, token by token; start it without the layer"
    if wrong:
        repairs = [1, 0] if layers > 1 else [0]
        yield Problem("mtp.layers", "model.mtp.layers", layers, wrong, (("model.mtp.layers", repairs),))


def _schedule_rules(config: Config) -> Iterator[Problem]:
    """What changes at a step: the frozen parts, the global batch."""
    until = config.stage.freeze_until or {}
    if unknown := [part for part in until if part not in PARTS]:
        message = f"{unknown[0]} is none of {', '.join(PARTS)}"
        yield Problem("freeze_until", "stage.freeze_until", until, message, (("stage.freeze_until", [None]),))
    elif until and (len(config.stage.frozen_at(0)) == len(PARTS) or min(until.values()) < 1):
        message = "leaves nothing to train at first" if min(until.values()) > 0 else "counts steps from 1"
        yield Problem("freeze_until", "stage.freeze_until", until, message, (("stage.freeze_until", [None]),))
    ramp = config.train.batch_until or {}
    for option, value in (("stage.freeze_until", until), ("train.batch_until", ramp)):
        if value and config.stage.name == "rlcs":
            yield Problem("rlcs.until", option, value, "is not for RLCS", ((option, [None]),))
    if ramp and (min(ramp) < 1 or min(ramp.values()) < 1):
        message = "has steps and packs of at least 1"
        yield Problem("batch_until", "train.batch_until", ramp, message, (("train.batch_until", [None]),))


def training_rules(config: Config, world: int | None) -> Iterator[Problem]:
    optim, train = config.optim, config.train
    if optim.min_lr > optim.lr:
        yield Problem(
            "min_lr", "optim.min_lr", optim.min_lr, f"is above lr = {optim.lr}", (("optim.min_lr", [optim.lr]),)
        )
    strange = [kind for kind in optim.no_decay if kind not in KINDS]
    if strange:
        kept = tuple(kind for kind in optim.no_decay if kind in KINDS)
        message = f"{strange[0]} is none of {', '.join(KINDS)}"
        yield Problem("no_decay", "optim.no_decay", optim.no_decay, message, (("optim.no_decay", [kept]),))
    if optim.cpu_offload != 0.0:
        message = "is not offered: megatron-core's hybrid optimizer goes on from the weights of before a load"
        advice = "spread the states over more data-parallel ranks, or see docs/memory.md"
        yield Problem(
            "cpu_offload", "optim.cpu_offload", optim.cpu_offload, message, (("optim.cpu_offload", [0.0]),), advice
        )
    sinks = config.tracking.sinks
    if other := [name for name in sinks if name not in SINKS]:
        known = tuple(name for name in sinks if name in SINKS)
        message = f"{other[0]} is none of {', '.join(SINKS)}"
        yield Problem("sinks", "tracking.sinks", sinks, message, (("tracking.sinks", [known]),))
    yield from _schedule_rules(config)
    for name in ("moe_router_fusion", "moe_permute_fusion"):
        if getattr(train, name) and (config.backend != "te" or config.model.text.moe is None):
            option, message = f"train.{name}", "is a kernel of Transformer Engine for MoE layers: backend=te"
            yield Problem(name, option, True, message, (("backend", ["te"]), (option, [False])))
    if train.stop_step is not None and train.stop_step > train.steps:
        yield Problem(
            "stop_step",
            "train.stop_step",
            train.stop_step,
            f"is behind the last step, train.steps = {train.steps}",
            (("train.stop_step", [train.steps, None]),),
        )
    if train.val_every and not config.data.val_path:
        yield Problem(
            "val_every",
            "train.val_every",
            train.val_every,
            "needs held-out shards: data.val_path=DIR",
            (("train.val_every", [0]),),
        )
    if config.parallel.overlap_param_gather and not config.parallel.overlap_grad_reduce:
        yield Problem(
            "overlap",
            "parallel.overlap_param_gather",
            True,
            "needs parallel.overlap_grad_reduce",
            (("parallel.overlap_grad_reduce", [True]), ("parallel.overlap_param_gather", [False])),
        )
    unknown = [part for part in config.stage.freeze if part not in PARTS]
    if unknown or len(set(config.stage.freeze)) == len(PARTS):
        message = f"{unknown[0]} is none of {', '.join(PARTS)}" if unknown else "leaves nothing to train"
        kept = tuple(part for part in dict.fromkeys(config.stage.freeze) if part in PARTS)[: len(PARTS) - 1]
        yield Problem("freeze", "stage.freeze", config.stage.freeze, message, (("stage.freeze", [kept]),))
    if not config.data.path and config.stage.name != "rlcs":
        yield Problem("data.path", "data.path", "", "has to be given: the directory that `glmv data make` wrote")


def precision_rules(config: Config, world: int | None) -> Iterator[Problem]:
    """FP8 is refused where it can't run, never ignored (megatron-core without Transformer Engine ignores it)."""
    precision = config.precision
    if precision.name != "fp8":
        return
    emulate = ("precision.fp8_backend", ["emulate"])
    other = ("precision.name", ["bf16"])
    if precision.fp8_backend == "te" and config.platform == "cpu":
        message = "runs on a GPU, and platform is cpu"
        yield Problem("fp8.cpu", "precision.fp8_backend", "te", message, (emulate, other))
    elif precision.fp8_backend == "te" and config.backend == "torch":
        message = "is Transformer Engine, and backend is torch"
        by_te = ("backend", ["te", "auto"])
        yield Problem("fp8.backend", "precision.fp8_backend", "te", message, (by_te, emulate, other))
    elif precision.fp8_backend == "emulate" and config.backend == "te":
        message = "is in the torch layers, and backend is te"
        by_torch = ("backend", ["torch", "auto"])
        repairs = (by_torch, ("precision.fp8_backend", ["te"]))
        yield Problem("fp8.emulate", "precision.fp8_backend", "emulate", message, repairs)
    if config.model.text.layers < 3 and precision.fp8_recipe != "delayed":
        message = f"leaves the first and the last layer in bf16, and there are {config.model.text.layers}"
        yield Problem("fp8.layers", "precision.name", "fp8", message, (other, ("precision.fp8_recipe", ["delayed"])))
