"""What one option may be, looked at alone: ranges of numbers, names from a list."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator

from .fingerprint import flatten
from .problem import Problem
from .schema import Config

POSITIVE = {  # integers that are at least 1
    "model.text": "layers hidden heads kv_heads head_dim ffn vocab max_position",
    "model.text.moe": "experts topk ffn shared_ffn",
    "model.vision": "depth hidden heads ffn merger_ffn patch temporal_patch merge position_grid",
    "parallel": "tensor pipeline virtual_pipeline context expert expert_tensor data",
    "data": "pack_tokens pack_window image_min_pixels image_max_pixels video_min_pixels video_max_pixels "
    "video_max_frames max_media_bytes max_image_pixels prefetch",
    "train": "steps stop_step global_batch log_every val_packs",
    "checkpoint": "keep",
    "cluster": "nodes ranks_per_node cpus_per_rank array_limit",
    "rl": "heldout_each heldout_samples groups updates max_new_tokens thinking_budget batch_size",
    "rl.expansion": "refill_batches",
    "rl.server": "port bucket_mb in_flight",
    "rl.judge": "votes parallel",
    "rl.environment": "turns workers",
    "rl.reward_model": "parallel batch",
    "optim": "muon_steps",
}
NOT_NEGATIVE = {  # numbers that may be 0
    "model.text.moe": "first_dense bias_rate aux_loss",
    "model.mtp": "layers loss_weight",
    "data": "workers",
    "optim": "lr min_lr warmup_steps lr_vision lr_merger lr_decoder weight_decay clip_grad",
    "train": "seed val_every",
    "checkpoint": "every",
    "cluster": "gpus_per_node notice max_requeues max_failures",
    "rl": "staleness heldout_every verify_weights_every clip_low clip_high",
    "rl.curriculum": "floor grade label_weight",
    "rl.server": "retries probe",
}
ABOVE_ZERO = {  # numbers above 0, with one that is a fair repair
    "model.text.rope_theta": 10000.0,
    "model.text.norm_eps": 1e-5,
    "model.text.init_std": 0.02,
    "model.text.moe.scaling": 1.0,
    "model.vision.rope_theta": 10000.0,
    "model.vision.norm_eps": 1e-5,
    "data.video_fps": 2.0,
    "optim.eps": 1e-8,
    "rl.tis_cap": 2.0,
    "rl.server.timeout_s": 600.0,
    "rl.judge.seconds": 30.0,
    "rl.environment.seconds": 10.0,
    "rl.reward_model.seconds": 30.0,
    "rl.reward_model.std": 1.0,
    "rl.reward_model.clip": 10.0,
    "rl.drift_limit": 1e-3,
    "optim.muon_rms": 0.2,
}
BETWEEN = {  # low <= number < high (or <= where `high` is 1 and `closed`), with a repair
    "rl.curriculum.ema": (0.0, 1.0, False, 0.8),
    "rl.curriculum.keep": (0.0, 1.0, True, 0.5),
    "rl.expansion.ema": (0.0, 1.0, False, 0.8),
    "rl.expansion.least_valid": (0.0, 1.0, True, 0.1),
    "optim.beta1": (0.0, 1.0, False, 0.9),
    "optim.beta2": (0.0, 1.0, False, 0.95),
    "optim.muon_momentum": (0.0, 1.0, False, 0.95),
    "parallel.pipeline_visual_share": (0.0, 1.0, True, 0.5),
    "data.quarantine_budget": (0.0, 1.0, True, 0.01),
    "model.text.rotary_percent": (0.0, 1.0, True, 0.5),
}
NAMES = {
    "stage.name": ("pretrain", "longcontext", "sft", "rlcs"),
    "rl.engine": ("inprocess", "vllm", "sglang"),
    "rl.reward_model.api": ("classify", "pooling", "score", "sglang"),
    "rl.server.update": ("distributed", "disk"),
    "rl.ratio": ("token", "sequence"),
    "rl.loss_mean": ("sample", "token"),
    "rl.expansion.reading": ("none", "rollouts", "budget", "refill"),
    "parallel.pipeline_split": ("even", "balanced"),
    "stage.expert_bias": ("auto", "moving", "frozen"),
    "precision.name": ("fp32", "bf16", "fp8"),
    "precision.fp8_recipe": ("delayed", "tensorwise", "blockwise"),
    "precision.fp8_backend": ("te", "emulate"),
    "optim.name": ("adamw", "muon"),
    "optim.muon_scale": ("measured", "shape"),
    "optim.muon_precision": ("auto", "fp32", "bf16"),
    "platform": ("auto", "cpu", "cuda"),
    "backend": ("auto", "te", "torch"),
    "resume": ("auto", "anyway", "never"),
    "cluster.launcher": ("srun", "torchrun"),
    "cluster.container": ("none", "pyxis", "apptainer"),
    "train.recompute": ("none", "selective", "full"),
    "data.template": ("glm45v", "glm41v"),
    "data.decode_on": ("cpu", "gpu"),
}


def _spread(table: dict[str, str]) -> list[str]:
    return [f"{group}.{name}" for group, names in table.items() for name in names.split()]


def range_rules(config: Config, world: int | None) -> Iterator[Problem]:
    """Problems of single options; a config without any of these can be handed to the rules that compute with them."""
    flat = flatten(config)

    def wrong(option: str, message: str, repair: object) -> Problem:
        return Problem(f"range:{option}", option, flat[option], message, ((option, [repair]),))

    finite = {key: value for key, value in flat.items() if isinstance(value, float) and not math.isfinite(value)}
    for option, value in finite.items():
        yield Problem(f"range:{option}", option, value, "is not a finite number")
    for options, least in ((_spread(POSITIVE), 1), (_spread(NOT_NEGATIVE), 0)):
        for option in options:
            number = flat.get(option)
            if number is not None and option not in finite and number < least:
                yield wrong(option, f"has to be at least {least}", type(number)(least))
    for option, repair in ABOVE_ZERO.items():
        number = flat.get(option)
        if number is not None and option not in finite and number <= 0:
            yield wrong(option, "has to be above 0", repair)
    for option, (low, high, closed, repair) in BETWEEN.items():
        number = flat[option]
        if option not in finite and not (low <= number < high or (closed and number == high)):
            yield wrong(option, f"has to be from {low:g} to {'' if closed else 'below '}{high:g}", repair)
    if flat["data.image_min_pixels"] > flat["data.image_max_pixels"]:
        yield wrong("data.image_min_pixels", "is above image_max_pixels", flat["data.image_max_pixels"])
    if flat["data.video_min_pixels"] > flat["data.video_max_pixels"]:
        yield wrong("data.video_min_pixels", "is above video_max_pixels", flat["data.video_max_pixels"])
    for option, names in NAMES.items():
        if flat[option] not in names:
            near = difflib.get_close_matches(flat[option], names, n=1, cutoff=0.0)
            yield wrong(option, f"is none of {', '.join(names)}", near[0])
    if min(config.model.text.mrope_section) < 1:
        yield Problem(
            "range:mrope_section", "model.text.mrope_section", config.model.text.mrope_section, "counts are at least 1"
        )
