"""apex by feature, never as a requirement: Transformer Engine has most of it, torch the rest.

The order is megatron-core's own (optimizer/__init__.py, optimizer/clip_grads.py, tensor_parallel/layers.py). apex is
built from source (github.com/NVIDIA/apex) or comes with NVIDIA's containers; PyPI's `apex` is a Pyramid web toolkit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_glmv.platform.probe import Facts

TE = "Transformer Engine"


@dataclass(frozen=True)
class Feature:
    """Something that apex is known for, and who can do it, best first."""

    name: str
    candidates: tuple[tuple[str, str], ...]
    """(probe, what it offers)."""
    otherwise: str
    """What is used where no candidate is usable."""


@dataclass(frozen=True)
class Choice:
    feature: str
    backend: str
    """te, apex or torch."""
    offers: str
    passed_over: str
    """Why those before it are not used."""


FEATURES = (
    Feature(
        "fused Adam",
        ((TE, "FusedAdam"), ("apex.optimizers", "FusedAdam")),
        "torch's AdamW over lists of tensors (platform/fused_adam.py on the CPU)",
    ),
    Feature(
        "multi-tensor clip",
        ((TE, "multi_tensor_l2norm and _scale"), ("amp_C", "multi_tensor_l2norm and _scale")),
        "megatron-core's loop over tensors",
    ),
    # apex's FusedLayerNorm behind megatron-core refuses RMSNorm, the only norm GLM has.
    Feature("RMS norm", ((TE, "RMSNorm, fused into the linear layer behind it"),), "model/norm.py"),
    # Transformer Engine's linear layers have it inside; megatron-core's own need apex's extension. Not switched on yet.
    Feature(
        "gradient-accumulation fusion",
        (
            (TE, "inside its linear layers; model/config.py leaves it off"),
            ("fused_weight_gradient_mlp_cuda", "wgrad_gemm_accum_fp32; model/config.py leaves it off"),
        ),
        "off: weight gradients are added to main_grad in a second pass",
    ),
)


def resolve(feature: Feature, facts: Mapping[str, Facts]) -> Choice:
    """The first candidate that is usable, else torch."""
    reasons: list[str] = []
    for probe, offers in feature.candidates:
        found = facts[probe]
        if found.usable:
            backend = "te" if probe == TE else "apex"
            return Choice(feature.name, backend, offers, "; ".join(reasons))
        reasons.append(f"{probe}: {found.import_error or found.unusable}")
    return Choice(feature.name, "torch", feature.otherwise, "; ".join(reasons))


def resolve_all(facts: Mapping[str, Facts]) -> tuple[Choice, ...]:
    return tuple(resolve(feature, facts) for feature in FEATURES)


def foreign(version: str) -> str:
    """A warning where the installed distribution `apex` is PyPI's, else empty. NVIDIA's has version 0.1."""
    if not version.startswith("0.9."):
        return ""
    return f"apex {version} is PyPI's project of that name (Pyramid, for web pages), not NVIDIA's: pip uninstall apex"
