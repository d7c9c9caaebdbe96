"""The other side of the parity tests: transformers, in a process that cannot import megatron_glmv or megatron-core.

    python reference.py JOB        reads JOB/job.json and JOB/inputs/*.safetensors, writes JOB/<model>/...

For every model of the job: a checkpoint with each parameter and buffer moved off its default, written by
save_pretrained under the names that transformers puts on disk. For every case of a model: logits, positions and the
gradient of the mean token NLL of every parameter, the gradients again written by save_pretrained (so that fused
experts come apart as transformers takes them apart). Then report.json: what is needed to trust the rest.

Shapes: B rows, S tokens, W vocabulary, E experts.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BARRED = ("megatron_glmv", "megatron")


class Barrier(importlib.abc.MetaPathFinder):
    """Refuses what is being tested, before any other finder is asked."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.partition(".")[0] in BARRED:
            raise ModuleNotFoundError(f"{name} must not be imported by the reference")


def prove_barrier() -> list[str]:
    """Tries to import each barred package; returns those that were refused."""
    refused = []
    for name in BARRED:
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            if "must not be imported" in str(error):
                refused.append(name)
    return refused


def fill(model: Any, seed: int) -> list[str]:
    """Random values of order one everywhere: norm weights around 1, biases and buffers around 0, the rest by fan-in.

    Returns the names that were set, which are all of the state dict.
    """
    import torch

    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in model.state_dict())]
    with torch.no_grad():
        for name, tensor in named:
            digest = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(digest))
            if "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.25 * noise)
            elif name.endswith("e_score_correction_bias"):
                tensor.copy_(0.1 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(0.25 * noise)
            elif "embed" in name and tensor.dim() == 2:
                tensor.copy_(0.5 * noise)
            else:
                fan_in = tensor.shape[-1] if tensor.dim() == 3 else tensor[0].numel()
                tensor.copy_(noise / math.sqrt(fan_in))
    return [name for name, _ in named]


def build(spec: dict[str, Any]) -> Any:
    import transformers

    config = getattr(transformers, spec["kind"] + "Config")(**spec["config"])
    kind = getattr(transformers, spec["kind"] + "ForConditionalGeneration")
    model = kind._from_config(config, attn_implementation=spec["attention"], experts_implementation="eager")
    return model.float().eval()


def logits_and_positions(model: Any, x: dict[str, Any]) -> tuple[Any, Any]:
    """[B, S, W] and [3, B, S]. transformers' own forward, except for images and videos in one batch, which it refuses:
    there its parts are put together as its forward does for one kind."""
    import torch

    grids = {name: x.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    both = all(grid is not None for grid in grids.values())
    types, mask = x["mm_token_type_ids"], x["attention_mask"]
    if any(grid is not None for grid in grids.values()):
        positions, _ = model.model.get_rope_index(x["input_ids"], types, **grids, attention_mask=mask)
    else:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[None].repeat(3, 1, 1) * mask
    if not both:
        return model(**x, use_cache=False).logits, positions
    embedded = model.get_input_embeddings()(x["input_ids"])
    for kind, pixels, features in (
        (1, "pixel_values", model.get_image_features),
        (2, "pixel_values_videos", model.get_video_features),
    ):
        found = features(x[pixels], grids["image_grid_thw" if kind == 1 else "video_grid_thw"]).pooler_output
        embedded = embedded.masked_scatter((types == kind)[..., None], torch.cat(found))
    hidden = model.model.language_model(inputs_embeds=embedded, position_ids=positions, attention_mask=mask)
    return model.lm_head(hidden.last_hidden_state), positions


def mean_nll(logits: Any, ids: Any, mask: Any) -> Any:
    """Over the pairs of neighbouring tokens that are both not padding."""
    import torch

    valid = (mask[:, :-1] * mask[:, 1:]).bool()
    logprobs = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(logprobs[valid].mean())


class Margin:
    """How close any router came to choosing other experts: the least gap between the last chosen and the first not
    chosen (biased score), over the tokens that are not padding."""

    def __init__(self, model: Any) -> None:
        self.least, self.mask = math.inf, None
        for module in model.modules():
            if type(module).__name__ == "Glm4vMoeTextTopkRouter":
                module.register_forward_hook(self._look)

    def _look(self, router: Any, _: Any, output: tuple[Any, ...]) -> None:
        scores = output[0].detach().sigmoid() + router.e_score_correction_bias
        ordered = scores[self.mask.reshape(-1).bool()].sort(dim=-1, descending=True).values
        gap = ordered[:, router.top_k - 1] - ordered[:, router.top_k]
        self.least = min(self.least, float(gap.min()))


def run_model(name: str, spec: dict[str, Any], job: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file, save_file

    model = build(spec)
    moved = fill(model, spec["seed"])
    model.save_pretrained(job / name / "hf")
    margin = Margin(model)
    report: dict[str, Any] = {"moved": moved, "state": sorted(model.state_dict()), "cases": {}}
    for case in spec["cases"]:
        x = load_file(job / "inputs" / f"{case}.safetensors")
        margin.mask = x["attention_mask"]
        margin.least = math.inf
        model.zero_grad(set_to_none=True)
        logits, positions = logits_and_positions(model, x)
        nll = mean_nll(logits, x["input_ids"], x["attention_mask"])
        nll.backward()
        save_file({"logits": logits.detach(), "position_ids": positions}, job / name / f"{case}.safetensors")
        state = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        buffers = {n: b for n, b in model.state_dict().items() if n not in state}
        model.save_pretrained(job / name / f"{case}-grads", state_dict={**state, **buffers})
        least = margin.least if margin.least < math.inf else None
        report["cases"][case] = {"nll": float(nll.detach()), "margin": least}
    return report


def declare_operators() -> Any:
    """torchvision's CUDA wheel lacks two operators on a CPU, and fails to import without them."""
    import torch

    if not importlib.util.find_spec("torchvision"):
        return None
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def main(job: Path) -> None:
    sys.meta_path.insert(0, Barrier())
    refused = prove_barrier()
    import torch

    operators = declare_operators()  # noqa: F841  # for as long as it is referenced
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    spec = json.loads((job / "job.json").read_text())
    report = {"refused": refused, "transformers": transformers.__version__}
    report["models"] = {name: run_model(name, model, job) for name, model in spec["models"].items()}
    report["loaded"] = sorted({name.partition(".")[0] for name in sys.modules} & set(BARRED))
    (job / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
