"""Conversion of full-width layers: time against cp + sha256 of the same bytes, and against transformers; memory.

    python tools/bench_convert.py --work /scratch/bench            # 7.65 GB a copy; needs five times that on disk
    python tools/bench_convert.py --work /scratch/bench --experts 32

The checkpoint is synthetic: embedding, head, one dense and one MoE layer of GLM-4.5V and one block of its encoder, all
of full width, in bf16. Everything runs as a process of its own, one after the other, in --repeat rounds, of which
medians are shown (the most for memory); import and export with --memory-limit 2GiB under an RLIMIT_DATA of 2.5 GiB.
What is written is on the disk when a time ends, on all sides. Memory is the most anonymous memory seen from outside,
every 20 ms. What is read has just been written, so it comes from the page cache for all where that is large enough.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from megatron_glmv.checkpoint.hf.config import model_to_hf
from megatron_glmv.checkpoint.hf.exporting import Target, grouped
from megatron_glmv.checkpoint.hf.mapping import Experts, name_mapping
from megatron_glmv.checkpoint.hf.safetensors import make_header
from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import ModelConfig

LIMIT, RLIMIT = "2GiB", 5 << 29
TRANSFORMERS = """
import os, sys
import torch
torchvision = torch.library.Library("torchvision", "DEF")  # its CUDA wheel lacks two operators on a CPU
for name in ("nms", "qnms") if not torch.cuda.is_available() else ():
    torchvision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from transformers import Glm4vMoeForConditionalGeneration as Model
Model.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])
for name in os.listdir(sys.argv[2]):
    file = os.open(os.path.join(sys.argv[2], name), os.O_RDONLY)
    os.fsync(file)
"""


@dataclass(frozen=True)
class Run:
    """Wall and CPU seconds; bytes of anonymous memory and of mapped files (weights that are mapped, and libraries)."""

    name: str
    seconds: float
    cpu: float
    memory: int
    mapped: int


def full_width(experts: int) -> ModelConfig:
    model = compose(["experiment=glm45v_pretrain"]).model
    assert model.text.moe is not None
    text = replace(model.text, layers=2, moe=replace(model.text.moe, experts=experts))
    return replace(model, text=text, vision=replace(model.vision, depth=1))


def write(model: ModelConfig, experts: Experts, out: Path) -> int:
    """Writes the checkpoint; returns its bytes. Values are normal with deviation 0.02, repeated every 64 MiB."""
    out.mkdir(parents=True)
    targets = [
        Target(t, torch.float32 if t.exact else torch.bfloat16) for t in name_mapping(model, experts).theirs.values()
    ]
    noise = torch.randn(32 << 20).mul_(0.02).bfloat16().view(torch.uint8).numpy()
    weight_map, total = {}, 0
    for i, group in enumerate(grouped(targets, 5 * 10**9), 1):
        name = f"model-{i:05d}.safetensors"
        with (out / name).open("wb") as file:
            file.write(make_header({t.shaped.name: (t.dtype, t.shaped.shape) for t in group}))
            for target in group:
                weight_map[target.shaped.name] = name
                total += target.bytes
                left = target.bytes
                while left:
                    left -= file.write(noise[: min(left, len(noise))])
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    (out / "config.json").write_text(json.dumps({**model_to_hf(model), "dtype": "bfloat16"}))
    return total


def measured(name: str, command: Sequence[str], limit: int | None = None) -> Run:
    """Runs a command to its end, with a limit on its data segment (anonymous memory)."""
    os.sync()
    before, began, memory = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), [0, 0]
    if limit:
        command = ["prlimit", f"--data={limit}", *command]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = [re.search(rf"{kind}:\s+(\d+)", status) for kind in ("RssAnon", "RssFile")]
            memory = [max(most, int(now[1]) * 1024 if now else 0) for most, now in zip(memory, found, strict=True)]
        except OSError:
            pass
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}")
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(name, seconds, cpu, *memory)


def once(work: Path, workers: int, transformers: bool) -> list[Run]:
    """One round over WORK/hf."""
    source = work / "hf"
    glmv = [sys.executable, "-m", "megatron_glmv.cli", "convert"]
    bounds = ["--workers", str(workers), "--memory-limit", LIMIT]
    copied = f"cp -r {source} {work}/copy && sync {work}/copy/* && cat {work}/copy/*.safetensors | sha256sum"
    runs = [measured("cp + sha256", ["bash", "-c", copied])]
    shutil.rmtree(work / "copy")
    taken = ["import", "--hf", str(source), "--out", str(work / "ours"), "--without-tokenizer", *bounds]
    runs.append(measured("import", [*glmv, *taken], RLIMIT))
    given = ["export", "--ckpt", str(work / "ours"), "--out", str(work / "back"), *bounds]
    runs.append(measured("export", [*glmv, *given], RLIMIT))
    shutil.rmtree(work / "ours")
    runs.append(measured("verify", [*glmv, "verify", str(source), str(work / "back"), *bounds], RLIMIT))
    shutil.rmtree(work / "back")
    if transformers:
        runs.append(measured("transformers", [sys.executable, "-c", TRANSFORMERS, str(source), str(work / "theirs")]))
        shutil.rmtree(work / "theirs")
    return runs


def bench(work: Path, model: ModelConfig, experts: Experts, workers: int, transformers: bool, repeat: int) -> None:
    total = write(model, experts, work / "hf")
    print(f"\nexperts {experts}: {total / 1e9:.2f} GB in bf16, {workers} workers, {repeat} rounds", flush=True)
    rounds = [once(work, workers, transformers) for _ in range(repeat)]
    shutil.rmtree(work / "hf")
    print(f"{'':14}{'seconds':>9}{'CPU s':>9}{'GB/s':>8}{'x cp':>7}{'x CPU':>7}{'GiB':>8}{'mapped':>8}")
    base: Run | None = None
    for same in zip(*rounds, strict=True):
        seconds, cpu = (median(getattr(run, name) for run in same) for name in ("seconds", "cpu"))
        memory, mapped = (max(getattr(run, name) for run in same) for name in ("memory", "mapped"))
        run = Run(same[0].name, seconds, cpu, memory, mapped)
        base = base or run
        ratios = f"{run.seconds / base.seconds:7.2f}{run.cpu / base.cpu:7.2f}"
        rate, held = total / 1e9 / run.seconds, f"{run.memory / 2**30:8.2f}{run.mapped / 2**30:8.2f}"
        print(f"{run.name:14}{run.seconds:9.1f}{run.cpu:9.1f}{rate:8.2f}{ratios}{held}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="a directory that is not there yet; removed at the end"
    )
    parser.add_argument("--experts", type=int, default=128, help="of the MoE layer; fewer where disk or memory lacks")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kind", choices=["single", "fused", "both"], default="both")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--without-transformers", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    kinds: list[Experts] = ["single", "fused"] if options.kind == "both" else [options.kind]
    try:
        for kind in kinds:
            with_transformers = not options.without_transformers
            bench(options.work, full_width(options.experts), kind, options.workers, with_transformers, options.repeat)
    finally:
        shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
