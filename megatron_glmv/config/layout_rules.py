"""The rules of a layout: what the parallel axes cut, how they fill the world, how a batch fills them. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

from .errors import ConfigError
from .layout import Sizes, expert_tensor_of, resolve_sizes, sequence_of
from .problem import Problem, divisors, multiples, near
from .schema import Config

ALIGNMENT = 16
"""Tokens to which each sample of a pack is aligned, in every layout."""


def balanced(layers: int, stages: int) -> tuple[int, ...]:
    """Layers per stage, as even as possible; the first (embedding, vision) and the last (output layer) get fewer."""
    base, extra = divmod(layers, stages)
    start = (stages - extra + 1) // 2
    return tuple(base + (start <= stage < start + extra) for stage in range(stages))


def tensor_rules(config: Config, world: int | None) -> Iterator[Problem]:
    """What tensor parallelism cuts. The vision encoder is not sharded, so its sizes are free."""
    text, tensor = config.model.text, config.parallel.tensor
    sizes = {
        "heads": text.heads,
        "kv_heads": text.kv_heads,
        "hidden": text.hidden,
        "ffn": text.ffn,
        "vocab": text.vocab,
    }
    if text.moe is not None:
        sizes["moe.shared_ffn"] = text.moe.shared_ffn
    uneven = [f"{name} {size}" for name, size in sizes.items() if size % tensor]
    if uneven:
        yield Problem(
            "tensor",
            "parallel.tensor",
            tensor,
            f"has to divide {', '.join(uneven)} of model.text",
            (("parallel.tensor", near(tensor, divisors(text.kv_heads))),),
        )
    sequence = config.parallel.sequence
    if sequence and tensor == 1:
        yield Problem(
            "sequence.alone",
            "parallel.sequence",
            sequence,
            "sequence parallelism splits over tensor ranks, and tensor is 1",
            (("parallel.sequence", [None, False]),),
        )
    if text.moe is not None and tensor > 1 and not sequence_of(config.parallel):
        yield Problem(
            "sequence.moe",
            "parallel.sequence",
            sequence,
            f"sparse layers with tensor = {tensor} need sequence parallelism",
            (("parallel.sequence", [None, True]),),
        )


def encoder_rules(config: Config, world: int | None) -> Iterator[Problem]:
    tensor, vision = config.parallel.tensor, config.model.vision
    if not config.parallel.encoder_tensor:
        return
    sizes = {"heads": vision.heads, "ffn": vision.ffn, "merger_ffn": vision.merger_ffn}
    uneven = [f"{name} {size}" for name, size in sizes.items() if size % tensor]
    if uneven:
        yield Problem(
            "encoder_tensor",
            "parallel.encoder_tensor",
            True,
            f"tensor = {tensor} has to divide {', '.join(uneven)} of model.vision",
            (("parallel.encoder_tensor", [False]), ("parallel.tensor", near(tensor, divisors(vision.heads)))),
        )


def pipeline_rules(config: Config, world: int | None) -> Iterator[Problem]:
    parallel, layers = config.parallel, config.model.text.layers
    pipeline, virtual, split = parallel.pipeline, parallel.virtual_pipeline, parallel.pipeline_layers
    chunks = pipeline * virtual
    if virtual > 1 and pipeline == 1:
        yield Problem(
            "virtual.alone",
            "parallel.virtual_pipeline",
            virtual,
            "interleaves the chunks of several pipeline stages, and pipeline is 1",
            (("parallel.virtual_pipeline", [1]),),
        )
    if pipeline > layers:
        yield Problem(
            "pipeline.layers",
            "parallel.pipeline",
            pipeline,
            f"is more than the {layers} layers",
            (("parallel.pipeline", near(pipeline, divisors(layers))),),
        )
    elif chunks > layers:
        yield Problem(
            "virtual.layers",
            "parallel.virtual_pipeline",
            virtual,
            f"x pipeline = {chunks} chunks is more than the {layers} layers",
            (
                ("parallel.virtual_pipeline", near(virtual, divisors(layers))),
                ("parallel.pipeline", near(pipeline, divisors(layers))),
            ),
        )
    elif parallel.pipeline_split == "balanced" and split is not None:
        yield Problem(
            "pipeline_split",
            "parallel.pipeline_layers",
            split,
            "and pipeline_split=balanced both say how layers are split",
            (("parallel.pipeline_layers", [None]), ("parallel.pipeline_split", ["even"])),
        )
    elif parallel.pipeline_split == "even" and split is None and layers % chunks:
        yield Problem(
            "pipeline.even",
            "parallel.pipeline",
            pipeline,
            f"x virtual_pipeline = {chunks} chunks does not divide the {layers} layers",
            (
                ("parallel.pipeline", near(pipeline, divisors(layers))),
                ("parallel.pipeline_layers", [balanced(layers, chunks)]),
                ("parallel.pipeline_split", ["balanced"]),
            ),
        )
    elif split is not None and (len(split) != chunks or sum(split) != layers or min(split) < 1):
        even = [] if layers % chunks else [None]
        yield Problem(
            "pipeline_layers",
            "parallel.pipeline_layers",
            split,
            f"has to be {chunks} counts (pipeline x virtual_pipeline) of at least 1 that sum to {layers} layers",
            (("parallel.pipeline_layers", [balanced(layers, chunks), *even]),),
        )


def expert_rules(config: Config, world: int | None) -> Iterator[Problem]:
    parallel, moe = config.parallel, config.model.text.moe
    expert, expert_tensor = parallel.expert, expert_tensor_of(parallel)
    if moe is None:
        if expert > 1:
            yield Problem(
                "expert.dense",
                "parallel.expert",
                expert,
                f"model {config.model.name} has no experts",
                (("parallel.expert", [1]),),
            )
    else:
        if moe.experts % expert:
            yield Problem(
                "expert",
                "parallel.expert",
                expert,
                f"does not divide the {moe.experts} experts",
                (("parallel.expert", near(expert, divisors(moe.experts))),),
            )
        if moe.ffn % expert_tensor:
            yield Problem(
                "expert_tensor",
                "parallel.expert_tensor",
                expert_tensor,
                f"does not divide an expert's ffn = {moe.ffn}",
                (("parallel.expert_tensor", [*near(expert_tensor, divisors(moe.ffn)), None]),),
            )
    if expert == 1 and expert_tensor != parallel.tensor:
        # megatron-core reduces expert gradients with the dense ones unless expert > 1: never summed over these ranks.
        yield Problem(
            "expert_tensor.alone",
            "parallel.expert_tensor",
            expert_tensor,
            f"with expert = 1 has to equal tensor = {parallel.tensor} (megatron-core computes it wrongly)",
            (("parallel.expert_tensor", [None, parallel.tensor]),),
        )


def grid_rules(config: Config, world: int | None) -> Iterator[Problem]:
    """How the axes fill the world, and how a global batch fills the axes."""
    parallel = config.parallel
    legal = [n for n in range(1, ALIGNMENT // 2 + 1) if n == 1 or ALIGNMENT % (2 * n) == 0]
    if parallel.context not in legal:
        yield Problem(
            "context",
            "parallel.context",
            parallel.context,
            f"x 2 has to divide {ALIGNMENT} (samples of a pack are aligned to that, and cut into 2 x context chunks)",
            (("parallel.context", near(parallel.context, legal)),),
        )
    try:
        sizes = resolve_sizes(parallel, world)
    except ConfigError as error:
        yield _grid_problem(config, world, error)
        return
    yield from _batch_rules(config, sizes)


def _grid_problem(config: Config, world: int | None, error: ConfigError) -> Problem:
    parallel, moe = config.parallel, config.model.text.moe
    experts = divisors(moe.experts) if moe is not None else [1]
    if error.option == "parallel":
        replica = parallel.tensor * parallel.pipeline * parallel.context
        ranks = divisors(world or 1)
        return Problem(
            "world",
            "parallel.tensor",
            parallel.tensor,
            f"tensor x pipeline x context = {replica} does not divide the {world} ranks started",
            (("parallel.tensor", near(parallel.tensor, ranks)), ("parallel.pipeline", near(parallel.pipeline, ranks))),
            error.fix,
        )
    if error.option == "parallel.data":
        return Problem(
            "data", "parallel.data", parallel.data, error.message, (("parallel.data", [v for _, v in error.legal]),)
        )
    per = parallel.expert * expert_tensor_of(parallel)
    data = near(parallel.data or 1, [n * per for n in range(1, 5)] + divisors(per))
    return Problem(
        "expert.grid",
        "parallel.expert",
        parallel.expert,
        error.message,
        (
            ("parallel.expert", near(parallel.expert, experts)),
            ("parallel.data", [n for n in data if n >= (parallel.data or 1)] if world is None else []),
            ("parallel.expert_tensor", [None] if parallel.expert_tensor is not None else []),
        ),
        f"start a multiple of {lcm(parallel.tensor * parallel.context, per) * parallel.pipeline} ranks"
        if world
        else "",
    )


def _batch_rules(config: Config, sizes: Sizes) -> Iterator[Problem]:
    parallel, batch = config.parallel, config.train.global_batch
    unit = sizes.data * (sizes.pipeline if parallel.virtual_pipeline > 1 else 1)
    if config.stage.name == "rlcs":
        unit = 1  # a step's packs come from its answers, and empty ones fill up what is missing
    if batch % unit:
        each = f"data = {sizes.data}" + (f" x pipeline = {sizes.pipeline}" if unit > sizes.data else "")
        why = " (interleaved stages take micro-batches by the pipeline)" if unit > sizes.data else ""
        yield Problem(
            "global_batch",
            "train.global_batch",
            batch,
            f"has to be a multiple of {each}{why}",
            (("train.global_batch", multiples(batch, unit)),),
        )
    odd = [packs for packs in (config.train.batch_until or {}).values() if packs % unit]
    if odd:
        message = f"has {odd[0]} packs; each has to be a multiple of {unit}, as the global batch"
        ramp = config.train.batch_until
        yield Problem("batch_until", "train.batch_until", ramp, message, (("train.batch_until", [None]),))
    tokens = config.data.pack_tokens
    split = sizes.context * (sizes.tensor if sequence_of(parallel) else 1)
    unit = lcm(ALIGNMENT, split)
    if tokens % unit:
        names = "tensor" if sizes.context == 1 else "context" if split == sizes.context else "context x tensor"
        also = f" and of {names} = {split}" if unit > ALIGNMENT else ""
        yield Problem(
            "pack_tokens",
            "data.pack_tokens",
            tokens,
            f"has to be a multiple of {ALIGNMENT}{also}",
            (("data.pack_tokens", multiples(tokens, unit)),),
        )
