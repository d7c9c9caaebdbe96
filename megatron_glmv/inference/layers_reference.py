"""The other side of `glmv convert verify --logits`: transformers' own forward pass, one layer in memory at a time.

    python -P layers_reference.py JOB        reads JOB/job.json, writes JOB/theirs/PART.safetensors and JOB/theirs.json

A process of its own that imports nothing of megatron_glmv: weights come from disk by the safetensors library, under
transformers' names, into transformers' modules. The model is made without memory for its parameters; hooks read those
of a layer before it runs and drop them behind it, so its forward pass is what it always is. All in fp32.

    vision       embedded [N, C], block.K [N, C], features [M, H]
    embedding    output [B, S, H], pictures in their places
    layer.K      input, attention, mlp, output [B, S, H]; attention and mlp are what is added to the residual
                 of a sparse layer also gate_input [B, S, H], scores [B, S, E] (with the bias that selects),
                 expert_input, expert_output [E, H]: one token for each expert, whichever it would be routed to
    head         logits [B, S, W]

Shapes: B rows, S tokens, H decoder width, E experts, W vocabulary, N patches, C encoder width, M visual tokens.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


class Weights:
    """A directory's tensors in fp32, under the names that transformers has in memory."""

    def __init__(self, directory: Path, rounded: bool) -> None:
        self.rounded = rounded
        index = directory / "model.safetensors.index.json"
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else None
        files: list[Any] = [safe_open(directory / name, "pt") for name in names or ["model.safetensors"]]
        self._where = {key: file for file in files for key in file.keys()}  # noqa: SIM118  # no mapping

    def __call__(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        for stored in (name, f"{name}.weight"):  # experts that lie stacked on disk too
            if stored in self._where:
                return self._read(stored).view(shape)
        made = torch.empty(shape)  # experts one by one: gate above up
        prefix, _, kind = name.rpartition(".")
        for e, part in enumerate(made):
            each = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            for rows, half in zip(part.chunk(len(each)), each, strict=True):
                rows.copy_(self._read(f"{prefix}.{e}.{half}.weight"))
        return made

    def _read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._where[name].get_tensor(name)
        exact = name.endswith("e_score_correction_bias")
        return (tensor.bfloat16() if self.rounded and not exact else tensor).float()


class Streamed:
    """transformers' model, whose parameters are there while they are used."""

    def __init__(self, directory: Path, weights: Weights) -> None:
        import transformers

        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        kind = getattr(transformers, config.architectures[0])
        base: Any = torch.nn.Module
        register = base.register_parameter

        def without_memory(module: Any, name: str, parameter: Any) -> None:
            register(module, name, parameter)
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

        base.register_parameter = without_memory
        try:
            self.model = kind._from_config(
                config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
            )
        finally:
            base.register_parameter = register
        self.model.eval()
        self.weights, self.peak = weights, 0
        text, visual = self.model.model.language_model, self.model.model.visual
        self.layers, self.blocks = list(text.layers), list(visual.blocks)
        units = {"model.visual.": visual, "model.language_model.embed_tokens.": text.embed_tokens}
        units |= {f"model.language_model.layers.{n}.": layer for n, layer in enumerate(self.layers)}
        units |= {"model.language_model.norm.": text.norm, "lm_head.": self.model.lm_head}
        for prefix, module in units.items():
            module.register_forward_pre_hook(self._load(prefix))
            module.register_forward_hook(self._drop)

    def _load(self, prefix: str) -> Callable[..., None]:
        def load(module: Any, _: Any) -> None:
            for name, parameter in list(module.named_parameters()):
                owner, _, leaf = name.rpartition(".")
                tensor = self.weights(prefix + name, tuple(parameter.shape))
                module.get_submodule(owner)._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
            for name, buffer in module.named_buffers():
                if name.endswith("e_score_correction_bias"):  # the others are computed, not stored
                    buffer.copy_(self.weights(prefix + name, tuple(buffer.shape)))

        return load

    def _drop(self, module: Any, *_: Any) -> None:
        self.peak = max(self.peak, anonymous())
        for name, parameter in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            empty = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
            module.get_submodule(owner)._parameters[leaf] = empty


class Recorder:
    """Writes what passes through the model; a part's file when the part is done."""

    def __init__(self, streamed: Streamed, rows: int, out: Path) -> None:
        self.rows, self.out = rows, out
        self.vision: dict[str, Any] = {}
        for k, block in enumerate(streamed.blocks):
            if k == 0:
                block.register_forward_pre_hook(self._keep_input(self.vision, "embedded"), with_kwargs=True)
            block.register_forward_hook(self._keep(self.vision, f"block.{k}"))
        visual = streamed.model.model.visual
        visual.merger.register_forward_hook(self._keep(self.vision, "features"))
        visual.register_forward_hook(lambda *_: self.save("vision", self.vision))
        for n, layer in enumerate(streamed.layers):
            self._watch(n, layer)

    def _watch(self, n: int, layer: Any) -> None:
        found: dict[str, Any] = {}
        names = dict(layer.named_children())
        layer.register_forward_pre_hook(self._keep_input(found, "input"), with_kwargs=True, prepend=True)
        names.get("post_self_attn_layernorm", layer.self_attn).register_forward_hook(self._keep(found, "attention"))
        names.get("post_mlp_layernorm", layer.mlp).register_forward_hook(self._keep(found, "mlp"))
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(self._keep_scores(found))
            layer.mlp.experts.register_forward_hook(self._ask_each(found))

        def done(_: Any, __: Any, output: Any) -> None:
            found["output"] = output
            if n == 0:
                self.save("embedding", {"output": found["input"]})
            self.save(f"layer.{n}", found)

        layer.register_forward_hook(done)

    def _keep(self, found: dict[str, Any], name: str) -> Callable[..., None]:
        def keep(_: Any, __: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def _keep_input(self, found: dict[str, Any], name: str) -> Callable[..., None]:
        def keep(_: Any, given: Any, named: Any) -> None:
            found[name] = given[0] if given else named["hidden_states"]

        return keep

    def _keep_scores(self, found: dict[str, Any]) -> Callable[..., None]:
        def keep(gate: Any, given: Any, output: Any) -> None:
            found["gate_input"] = given[0]
            found["scores"] = (output[0].sigmoid() + gate.e_score_correction_bias).view(self.rows, -1, gate.num_experts)

        return keep

    def _ask_each(self, found: dict[str, Any]) -> Callable[..., None]:
        def ask(experts: Any, given: Any, _: Any) -> None:
            each = torch.arange(experts.num_experts)
            tokens = given[0].view(-1, given[0].shape[-1])
            found["expert_input"] = tokens[each % len(tokens)]
            answers = experts.forward(found["expert_input"], each[:, None], torch.ones(len(each), 1))
            found["expert_output"] = answers

        return ask

    def save(self, part: str, found: dict[str, Any]) -> None:
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in found.items()},
                  self.out / f"{part}.safetensors")  # fmt: skip
        found.clear()


def anonymous() -> int:
    """Bytes of anonymous memory this process has now."""
    found = re.search(r"^RssAnon:\s+([0-9]+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def declare_operators() -> Any:
    """torchvision's CUDA wheel lacks two operators on a CPU, and transformers fails to import with it."""
    if not importlib.util.find_spec("torchvision") or torch.cuda.is_available():
        return None
    library: Any = torch.library.Library
    operators = library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def main(job: Path) -> None:
    operators = declare_operators()  # noqa: F841  # for as long as it is referenced
    spec = json.loads((job / "job.json").read_text())
    out = job / "theirs"
    out.mkdir()
    directory = Path(spec["directory"])
    streamed = Streamed(directory, Weights(directory, spec["rounded"]))
    given = load_file(spec["input"])
    recorder = Recorder(streamed, len(given["input_ids"]), out)
    with torch.no_grad():
        logits = streamed.model(**given, use_cache=False).logits
    recorder.save("head", {"logits": logits})
    import transformers

    report = {"transformers": transformers.__version__, "peak_memory": streamed.peak}
    (job / "theirs.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
