"""README.md of an exported directory: what it is and where it comes from."""

from __future__ import annotations

from typing import Any

import megatron_glmv
from megatron_glmv.checkpoint.reader import Checkpoint


def model_card(checkpoint: Checkpoint, config: dict[str, Any], origin: str) -> str:
    """Nothing in it depends on when or where it was made, so an export that is repeated has the same bytes."""
    manifest = checkpoint.manifest
    model, text = config["architectures"][0], config["text_config"]
    experts = f", {text['n_routed_experts']} experts" if "n_routed_experts" in text else ""
    layout = ", ".join(f"{name} {size}" for name, size in sorted(manifest.topology.items())) or "imported, not trained"
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(manifest.libraries.items()))
    rows = [
        ("Architecture", f"{model}: {text['num_hidden_layers']} layers, hidden {text['hidden_size']}{experts}"),
        ("Training step", str(manifest.step)),
        ("Layout it was saved on", layout),
        ("Config fingerprint", manifest.config_fingerprint or "none: weights as they were imported"),
        ("Tokenizer fingerprint", manifest.tokenizer_fingerprint),
        ("Written by", f"megatron_glmv {manifest.package_version} ({libraries})"),
        ("Exported by", f"megatron_glmv {megatron_glmv.__version__}"),
        ("Processor and templates", origin),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n---\n\n# {model}\n\n"
        f"Weights of a megatron_glmv checkpoint.\n\n| | |\n|---|---|\n{table}\n\n"
        "Expert biases (`e_score_correction_bias`) are float32; rounding them sends tokens to other experts.\n"
        "`glmv_export.json` has the sha256 of every file and of the checkpoint's files.\n"
    )
