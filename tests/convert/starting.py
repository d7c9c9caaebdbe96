"""Tiny models that pre-training starts from, written by transformers with what they compute: python starting.py JOB.

    JOB/air, JOB/glm4     GLM-4.5-Air with a prediction layer behind the last, GLM-4-9B; logits of JOB/ids
    JOB/aimv2             AIMv2 without its pooling head; last_hidden_state [1, 36, C] of an image of 6 x 6 patches

It cannot import megatron_glmv (reference.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from reference import Barrier, declare_operators, fill, prove_barrier

TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
}
MOE = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
    "use_head": False,
}


def main(job: Path) -> None:
    sys.meta_path.insert(0, Barrier())
    assert len(prove_barrier()) == 2
    operators = declare_operators()  # noqa: F841  # for as long as it is referenced
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    outputs = {"ids": torch.randint(128, (1, 40), generator=torch.Generator().manual_seed(1))}
    for name, kind, config in (("air", "Glm4Moe", {**TEXT, **MOE}), ("glm4", "Glm4", {**TEXT, "head_dim": 16})):
        made = getattr(transformers, f"{kind}Config")(**config)
        causal = getattr(transformers, f"{kind}ForCausalLM")
        model = causal._from_config(made, attn_implementation="eager", experts_implementation="eager").float().eval()
        fill(model, 2)
        model.save_pretrained(job / name)
        with torch.no_grad():
            outputs[name] = model(outputs["ids"], use_cache=False).logits
    air = load_file(job / "air" / "model.safetensors")
    copied = {n.replace("layers.2.", "layers.3."): t + 1 for n, t in air.items() if "layers.2." in n}
    g = torch.Generator().manual_seed(7)
    own = {"eh_proj": (64, 128), "enorm": (64,), "hnorm": (64,), "shared_head.norm": (64,)}
    extra = {**copied, **{f"model.layers.3.{n}.weight": torch.randn(shape, generator=g) for n, shape in own.items()}}
    extra["model.layers.3.embed_tokens.weight"] = air["model.embed_tokens.weight"].clone()  # as some files have them
    extra["model.layers.3.shared_head.head.weight"] = air["lm_head.weight"].clone()
    save_file({**air, **extra}, job / "air" / "model.safetensors", metadata={"format": "pt"})
    encoder = transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**VISION)).float().eval()
    fill(encoder, 3)
    encoder.save_pretrained(job / "aimv2")
    outputs["image"] = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        outputs["hidden"] = encoder(outputs["image"]).last_hidden_state
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, job / "outputs.safetensors")
    (job / "report.json").write_text(json.dumps({"extra": sorted(extra)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
