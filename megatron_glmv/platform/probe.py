"""What can be imported and used on this machine, tried in processes that may die of it.

`python -m megatron_glmv.platform.probe` imports torch once and forks a child for each probe, so that a broken extension
harms neither its neighbours nor the caller and torch's two seconds are paid once. One JSON object on stdout: facts by
name. `run` is how other code asks.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing as mp
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

PROBE_TIMEOUT_S = 60


@dataclass(frozen=True)
class Facts:
    """What one probe found."""

    import_error: str = ""
    """Last line of what the import raised; empty: it works."""
    unusable: str = ""
    """Why it cannot be used here although it can be imported; empty: a small use of it worked."""
    detail: str = ""
    """What is worth knowing about it: device names, versions behind the version."""

    @property
    def importable(self) -> bool:
        return not self.import_error

    @property
    def usable(self) -> bool:
        return not self.import_error and not self.unusable


class Unusable(Exception):
    """Importable, but of no use here; the message says why."""


def run(names: Sequence[str] | None = None) -> dict[str, Facts]:
    """Facts of the named probes (all of PROBES), from a process of its own. Takes as long as importing torch and the
    slowest of them."""
    # -P: a file of the working directory must not be taken for a library.
    command = [sys.executable, "-P", "-m", "megatron_glmv.platform.probe", *(names or PROBES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PROBE_TIMEOUT_S, check=False)
        last = done.stdout.strip().splitlines()[-1:]
        return {name: Facts(**facts) for name, facts in json.loads(last[0] if last else "").items()}
    except subprocess.TimeoutExpired:
        broken = Facts(f"the probes did not end within {2 * PROBE_TIMEOUT_S} s")
    except ValueError:
        lines = done.stderr.strip().splitlines()
        broken = Facts(lines[-1] if lines else f"the probes ended with exit code {done.returncode}")
    return dict.fromkeys(names or PROBES, broken)


def _device() -> None:
    import torch

    if not torch.cuda.is_available():
        raise Unusable("needs a CUDA GPU")


def _use_torch() -> str:
    import torch

    a = torch.eye(8)
    if not torch.equal(a @ a, a):
        raise Unusable("a matrix product came out wrong")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise Unusable("built without torch.distributed and gloo")
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"


def _use_gpu() -> str:
    import torch

    if not torch.version.cuda:
        raise Unusable("torch is built without CUDA")
    if not torch.cuda.is_available():
        raise Unusable("no CUDA device, or no driver for it")
    torch.ones(8, device="cuda").sum().item()
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor})" for p in names)


def _use_nccl() -> str:
    import torch

    if not torch.distributed.is_nccl_available():
        raise Unusable("torch is built without it")
    _device()
    return "NCCL " + ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _use_core() -> str:
    importlib.import_module("megatron.core.models.gpt")
    return ""


def _use_te() -> str:
    _device()
    import torch
    import transformer_engine.pytorch as te

    layer = te.Linear(16, 16, bias=False, params_dtype=torch.bfloat16, device="cuda")
    layer(torch.ones(16, 16, dtype=torch.bfloat16, device="cuda")).sum().item()
    try:
        fine, why = te.is_fp8_available(return_reason=True)
    except (AttributeError, TypeError):  # asked otherwise before 2.9
        return ""
    return "FP8 available" if fine else f"no FP8: {why}"


def _use_dali() -> str:
    """Decodes one pixel: its decoders are libraries of their own, and load late."""
    import io

    import numpy as np
    import nvidia.dali.experimental.dynamic as ndd
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1), (1, 2, 3)).save(file, "PNG")
    with ndd.EvalContext(num_threads=1, device_id=None):
        batch = ndd.batch([np.frombuffer(file.getvalue(), np.uint8)])
        (pixel,) = ndd.decoders.image(batch, device="cpu").tensors
        if np.asarray(pixel).reshape(-1).tolist() != [1, 2, 3]:
            raise Unusable("a picture of one pixel came out wrong")
    import torch

    return "decodes on the GPU" if torch.cuda.is_available() else "decodes on the CPU"


def _use_av() -> str:
    import av

    if missing := {"vp9", "h264"} - av.codecs_available:
        raise Unusable(f"built without the decoders {', '.join(sorted(missing))}")
    return "FFmpeg libavcodec " + ".".join(map(str, av.library_versions["libavcodec"]))


def _use_tokenizers() -> str:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))  # noqa: S106
    if made.encode("a").ids != [0]:
        raise Unusable("encodes one letter wrongly")
    return ""


def _on_gpu() -> str:
    _device()
    return ""


def _install_platform(_: str) -> None:
    """megatron-core, as every command imports it."""
    from megatron_glmv.platform.device import select

    importlib.import_module("megatron.core.package_info")  # without the stand-ins: is it there at all
    select("auto").install()
    importlib.import_module("megatron.core")


@dataclass(frozen=True)
class Probe:
    module: str
    use: Callable[[], str]
    """A small use, in a process where the module is imported; returns a detail, raises Unusable (or anything)."""
    load: Callable[[str], Any] = importlib.import_module


PROBES: dict[str, Probe] = {
    "torch": Probe("torch", _use_torch),
    "GPU": Probe("torch", _use_gpu),
    "NCCL": Probe("torch", _use_nccl),
    "megatron-core": Probe("megatron.core", _use_core, _install_platform),
    "Transformer Engine": Probe("transformer_engine.pytorch", _use_te),
    "DALI": Probe("nvidia.dali.experimental.dynamic", _use_dali),
    "PyAV": Probe("av", _use_av),
    "tokenizers": Probe("tokenizers", _use_tokenizers),
    # apex by its submodules: `import apex` says nothing about what was built.
    "apex.optimizers": Probe("apex.optimizers", _on_gpu),
    "apex.normalization": Probe("apex.normalization.fused_layer_norm", _on_gpu),
    "amp_C": Probe("amp_C", _on_gpu),
    "fused_weight_gradient_mlp_cuda": Probe("fused_weight_gradient_mlp_cuda", _on_gpu),
}


def probe(found: Probe) -> Facts:
    """In a process of its own."""
    try:
        found.load(found.module)
    except BaseException as error:
        return Facts(import_error=_line(error))
    try:
        return Facts(detail=found.use())
    except Unusable as error:
        return Facts(unusable=str(error))
    except BaseException as error:
        return Facts(unusable=_line(error))


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def _child(found: Probe, answer: Connection) -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # what libraries print must not come between the facts
    os.dup2(sink, 2)
    answer.send(asdict(probe(found)))
    answer.close()
    os._exit(0)  # no destructors of half-loaded libraries


def _ask_all(names: Sequence[str]) -> dict[str, dict[str, str]]:
    context = mp.get_context("fork")
    asked = {}
    for name in names:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=partial(_child, PROBES[name], sending), daemon=True)
        process.start()
        sending.close()
        asked[name] = (process, receiving)
    facts: dict[str, dict[str, str]] = {}
    for name, (process, receiving) in asked.items():
        try:
            if not receiving.poll(PROBE_TIMEOUT_S):
                process.kill()
                facts[name] = asdict(Facts(f"the import did not end within {PROBE_TIMEOUT_S} s"))
            else:
                facts[name] = receiving.recv()
        except EOFError:
            process.join()
            facts[name] = asdict(Facts(f"the import ended its process (exit code {process.exitcode})"))
    return facts


if __name__ == "__main__":
    try:
        importlib.import_module("torch")  # shared by the children; whether it works is a probe of its own
    except Exception as error:
        print(_line(error), file=sys.stderr)
    print(json.dumps(_ask_all(sys.argv[1:])), flush=True)
