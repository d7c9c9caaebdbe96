"""What megatron-core takes for granted of CUDA, found in its source, against what the CPU platform answers.

A release that assumes something new fails here, by name and file, instead of deep in a training step. Found are names
under torch.cuda, the literal device "cuda", page-locking, and `.cuda()`-like methods; what a program computes (a device
string put together from parts) is not.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_glmv.platform.cpu import table
from megatron_glmv.platform.fused_adam import FusedAdam
from megatron_glmv.platform.standins import StandIn

_spec = importlib.util.find_spec("megatron")
assert _spec is not None and _spec.submodule_search_locations is not None
CORE = Path(next(iter(_spec.submodule_search_locations)), "core")

ELSEWHERE = {
    "datasets/": "megatron-core's text data sets; ours are in data/",
    "distributed/fsdp/": "another kind of data parallelism",
    "distributed/torch_fully_sharded_data_parallel.py": "another kind of data parallelism",
    "export/": "conversion for other engines",
    "full_cuda_graph.py": "CUDA graphs, refused by their options",
    "inference/": "its serving engine; ours is in inference/",
    "models/mamba/": "another model",
    "models/mimo/": "another model",
    "models/multimodal/": "another model",
    "models/vision/": "another model",
    "nccl_allocator.py": "NCCL's own memory",
    "post_training/": "distillation and quantisation",
    "quantization/": "quantised weights",
    "resharding/": "moving weights between trainers by NVSHMEM and NCCL",
    "ssm/": "another model",
    "transformer/cuda_graphs.py": "CUDA graphs, refused by their options",
    "transformer/custom_layers/": "Triton kernels",
}
"""Parts of megatron-core that no run of ours gets into."""

HARMLESS = {
    ".is_cuda": "a question; the answer on a CPU is no",
    "torch.cuda.is_available": "a question; the answer on a CPU is no",
    "torch.cuda.FloatTensor": "a type to compare with, defined without CUDA too",
    "torch.cuda.HalfTensor": "a type to compare with, defined without CUDA too",
    "torch.cuda.BFloat16Tensor": "a type to compare with, defined without CUDA too",
    "torch.cuda.OutOfMemoryError": "an exception to catch, defined without CUDA too",
    "torch.cuda.amp.custom_fwd": "marks a function; does nothing without autocast",
    "torch.cuda.amp.custom_bwd": "marks a function; does nothing without autocast",
}

NEVER = {  # (file, name): why it is not reached
    ("dist_checkpointing/exchange_utils.py", 'init_data("cuda")'): "loads by exchange between ranks; ours read files",
    ("dist_checkpointing/strategies/torch.py", "TensorProperties(pin_memory)"): "a record of the tensor, no allocation",
    ("models/gpt/fine_grained_callables.py", "torch.cuda.nvtx.range"): "overlap of expert all-to-all, off",
    ("optimizer/cpu_offloading/hybrid_optimizer.py", 'to("cuda")'): "optimizer offload, refused without a GPU",
    ("pipeline_parallel/combined_1f1b.py", 'torch.autocast("cuda")'): "overlap of expert all-to-all, off",
    ("pipeline_parallel/fine_grained_activation_offload.py", "GPUTensorPool(pin_memory)"): "activation offload, off",
    ("pipeline_parallel/schedules.py", 'torch.autocast("cuda")'): "config.enable_autocast, off",
    ("pipeline_parallel/utils.py", 'torch.cuda.Stream(device="cuda")'): "the stand-in takes any arguments",
    ("tensor_parallel/inference_layers.py", "torch.cuda.get_device_properties"): "layers of its serving engine",
    ("tensor_parallel/random.py", "torch.cuda.CUDAGraph"): "random states inside CUDA graphs",
    ("tensor_parallel/random.py", "torch.cuda._lazy_call"): "in the two functions that have stand-ins",
    ("tensor_parallel/random.py", "torch.cuda._lazy_init"): "random states inside CUDA graphs",
    ("tensor_parallel/random.py", "torch.cuda.device"): "in the two functions that have stand-ins",
    ("tensor_parallel/random.py", 'torch.device("cuda")'): "in the two functions that have stand-ins",
    ("transformer/moe/token_dispatcher.py", 'torch.device("cuda")'): "compared with where split sizes lie",
    ("utils.py", "torch.cuda.clock_rate"): "StragglerDetector, not used",
    ("utils.py", "torch.cuda.power_draw"): "StragglerDetector, not used",
    ("utils.py", "torch.cuda.temperature"): "StragglerDetector, not used",
    ("utils.py", "torch.cuda.utilization"): "StragglerDetector, not used",
    ("utils.py", 'symm_mem.empty(device="cuda")'): "symmetric memory of its serving engine",
}

METHODS = {"cuda", "record_stream", "pin_memory", "is_cuda"}


def assumptions(source: str) -> set[str]:
    """What a file assumes of CUDA, in the spelling of the tables above."""
    found: set[str] = set()
    inner: set[int] = set()  # torch.cuda.nvtx inside torch.cuda.nvtx.mark
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute():
                name = ast.unparse(node)
                if re.fullmatch(r"torch\.cuda(\.\w+)+", name):
                    if id(node) not in inner:
                        found.add(name)
                    inner.add(id(node.value))
                elif node.attr in METHODS:
                    found.add(f".{node.attr}")
            case ast.Call():
                found.update(_of_call(node))
            case ast.Constant(value=str(text)) if re.fullmatch(r"torch\.cuda\.\w+", text):
                found.add(repr(text))
            case ast.ImportFrom(module=str(module)) if re.fullmatch(r"torch\.cuda(\.\w+)*", module):
                found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def _of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    if not re.fullmatch(r"(torch|symm_mem)(\.\w+)+|\w+", called):
        called = called.rpartition(".")[2]
    for keyword in node.keywords:
        if keyword.arg == "device" and _is_cuda(keyword.value):
            yield f'{called}(device="cuda")'
        if keyword.arg == "pin_memory":
            yield f"{called}(pin_memory)"
    if any(map(_is_cuda, node.args)):
        yield f'{called}("cuda")'


def _is_cuda(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(re.match(r"cuda(:\d)?$", node.value))


def answered(name: str, targets: set[str]) -> bool:
    if name.startswith("'"):
        return "torch.Tensor.type" in targets if name.endswith("Tensor'") else name.strip("'") in targets
    if name.startswith("."):
        return f"torch.Tensor{name}" in targets
    factory = re.fullmatch(r'(torch\.\w+)\((?:device="cuda"|pin_memory)\)', name)
    return (factory[1] if factory else name) in targets


def unanswered(files: dict[str, str], targets: set[str]) -> set[tuple[str, str]]:
    """(file, name) of what nothing answers, in sources by file name."""
    scanned = {file: text for file, text in files.items() if not file.startswith(tuple(ELSEWHERE))}
    return {
        (file, name)
        for file, text in scanned.items()
        for name in assumptions(text)
        if name not in HARMLESS and not answered(name, targets)
    }


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {path.relative_to(CORE).as_posix(): path.read_text() for path in sorted(CORE.rglob("*.py"))}


@pytest.fixture(scope="module")
def targets() -> set[str]:
    return {stand_in.target for stand_in in table()}


def test_every_assumption_has_an_answer(sources: dict[str, str], targets: set[str]) -> None:
    assert len(sources) > 200
    assert unanswered(sources, targets) - set(NEVER) == set()


def test_no_exception_outlives_its_reason(sources: dict[str, str], targets: set[str]) -> None:
    assert set(NEVER) - unanswered(sources, targets) == set()
    assert [part for part in ELSEWHERE if not (CORE / part).exists()] == []


NEW = """
import torch
def f(t):
    torch.cuda.memory.newly_made(0)
    s = torch.cuda.current_stream()
    a = torch.eye(3, device="cuda")
    b = torch.zeros(3, device="cuda")
    if t.type() == 'torch.cuda.FloatTensor':
        return t.to("cuda:0")
    return t.cuda()
"""


def test_a_new_assumption_is_seen(targets: set[str]) -> None:
    found = {name for _, name in unanswered({"optimizer/new.py": NEW}, targets)}
    assert found == {"torch.cuda.memory.newly_made", 'torch.eye(device="cuda")', 'to("cuda")'}
    assert unanswered({"inference/new.py": NEW}, targets) == set()
    assert ("optimizer/new.py", ".cuda") in unanswered({"optimizer/new.py": NEW}, targets - {"torch.Tensor.cuda"})


@pytest.mark.parametrize("stand_in", table(), ids=lambda stand_in: stand_in.target)
def test_a_stand_in_answers_what_it_says(stand_in: StandIn, sources: dict[str, str]) -> None:
    """The files it names exist, and one of them has the name that is replaced."""
    places, colon, _ = stand_in.answers.partition(":")
    assert colon
    named = [place.strip() for place in re.split(r",| ", places) if place.strip().endswith((".py", "/"))]
    named = [""] if places == "everywhere" else named
    texts = [
        text
        for place in named
        for file, text in sources.items()
        if file.startswith(place) or file.endswith("/" + place)
    ]
    assert named and texts, f"{places}: no such file"
    word = stand_in.target.rpartition(".")[2]
    assert any(re.search(rf"\b{word}\b", text) for text in texts), f"{places} does not name {word}"
    if re.fullmatch(r"torch\.[a-z_]+", stand_in.target):  # a factory: replaced for its device or for page-locking
        kinds = {f'{stand_in.target}(device="cuda")', f"{stand_in.target}(pin_memory)"}
        assert any(kinds & assumptions(text) for text in texts), f"{places} never makes {word} on cuda"


@pytest.mark.parametrize("decoupled", [True, False], ids=["AdamW", "Adam"])
def test_the_stand_in_for_fused_adam_is_torchs_adam_bit_for_bit(decoupled: bool) -> None:
    """Both call torch's functional Adam, with the step kept in another place."""
    ours, theirs = ([torch.nn.Parameter(t.clone()) for t in _tensors()] for _ in range(2))
    settings = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    mine = FusedAdam(ours, adam_w_mode=decoupled, **settings)
    other = (torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs, foreach=True, **settings)
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b, start in zip(ours, theirs, _tensors(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, start)
        assert torch.equal(mine.state[a]["exp_avg_sq"], other.state[b]["exp_avg_sq"])
        assert set(mine.state[a]) == {"exp_avg", "exp_avg_sq"}, "the shape that Transformer Engine's and apex's have"
    assert mine.param_groups[0]["step"] == 5


def _tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(shape, generator=generator) for shape in ((4, 3), (7,), ())]
