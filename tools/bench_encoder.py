"""Work of the vision encoder in one pack: every rank of tensor x context encodes every image, or each image is encoded
once; both from one run.

    python tools/bench_encoder.py                            # four processes on this machine
    python tools/bench_encoder.py --tensor 4 --context 1 --images 40
    torchrun --nproc-per-node 4 tools/bench_encoder.py --model glm45v --side 448     # GPUs

Embedding of a pack (encoder, exchange, fusion) forward and backward, the two ways in turn. Printed are the patches that
the rank with most of them encoded, counted where they enter the encoder, the wall time of the slowest rank, and the CPU
seconds of all ranks together. The ratio is spread over replicated, 1 / (tensor x context) at best; that of the patches
is the same on every machine, the times are not. With images of different sizes the balance is part of the figure.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import Config
from megatron_glmv.parallel.launch import RankContext, detect, launch

PRELOAD = ("megatron_glmv.stages.preload",)
MODES = (("replicated", False), ("spread", True))


@dataclass(frozen=True)
class Job:
    config: Config
    images: int
    side: int
    """Pixels along one side of the largest image; others have half of it one way."""
    repeats: int


@dataclass(frozen=True)
class Timed:
    wall: float
    cpu: float
    patches: int
    """That entered this rank's encoder."""


def packed(job: Job, device: Any) -> tuple[Any, Any, int]:
    """input_ids [1, T], the pack's images, T."""
    import torch

    from megatron_glmv.model.glmv import VisualInput

    vision = job.config.model.vision
    whole = job.side // vision.patch // vision.merge * vision.merge
    half = max(vision.merge, whole // 2 // vision.merge * vision.merge)
    grids = torch.tensor([(1, whole, whole if i % 3 else half) for i in range(job.images)])
    patches = int(grids.prod(dim=1).sum())
    tokens = patches // vision.merge**2
    unit = 16 * job.config.parallel.tensor * job.config.parallel.context
    length = -(-(tokens + job.images) // unit) * unit
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(patches, vision.patch_values, generator=generator).to(device)
    visual = VisualInput(pixel_values=pixels, grids=grids, positions=torch.arange(tokens))
    return torch.zeros(1, length, dtype=torch.int64, device=device), visual, length


def rank_times(job: Job, context: RankContext) -> dict[str, list[Timed]]:
    """Of this rank, by mode."""
    from megatron_glmv.stages.session import open_session

    with open_session(job.config, context) as session:
        import torch
        import torch.distributed as dist

        from megatron_glmv.model.build import build_model
        from megatron_glmv.model.packed import packed_segments

        groups, device = session.groups, session.device
        (model,) = build_model(job.config, groups, backend=session.backend, device=device)
        model = getattr(model, "module", model)
        ids, visual, length = packed(job, device)
        geometry = packed_segments(torch.tensor([0, length], dtype=torch.int32), (groups.cp.rank(), groups.cp.size()))
        ids = geometry.split.take(ids)
        entered = [0]

        def count(_: Any, given: tuple[Any, ...]) -> None:
            entered[0] += len(given[0])

        model.vision.register_forward_pre_hook(count)
        made: dict[str, list[Timed]] = {name: [] for name, _ in MODES}
        for repeat in range(-1, job.repeats):  # the first one warms up
            for name, spread in MODES:
                model.encoder_data = spread
                entered[0] = 0
                dist.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                model.embed(ids, visual, geometry.split).float().sum().backward()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                spent = Timed(time.perf_counter() - wall, time.process_time() - cpu, entered[0])
                model.zero_grad(set_to_none=True)
                if repeat >= 0:
                    made[name].append(spent)
        return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny_glm45v", help="a choice of conf/model (%(default)s)")
    parser.add_argument("--tensor", type=int, default=2)
    parser.add_argument("--context", type=int, default=2)
    parser.add_argument("--images", type=int, default=36, help="images in the pack (%(default)s)")
    parser.add_argument("--side", type=int, default=224, help="pixels along one side (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each way (%(default)s)")
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args(arguments)
    config = compose(
        [
            "experiment=tiny_pretrain", f"model={options.model}", f"precision={options.precision}", "data.path=unused",
            f"parallel.tensor={options.tensor}", f"parallel.context={options.context}",
        ]
    )  # fmt: skip
    job = Job(config, options.images, options.side, options.repeats)
    context = detect()
    if context is not None:
        mine = rank_times(job, context)
        ranks = [mine]  # each rank prints its own
    else:
        ranks = launch(partial(rank_times, job), options.tensor * options.context, preload=PRELOAD)
    show(job, ranks)
    return 0


def show(job: Job, ranks: list[dict[str, list[Timed]]]) -> None:
    layout = f"tensor {job.config.parallel.tensor} x context {job.config.parallel.context}"
    print(
        f"{job.config.model.name}, {layout}, {job.images} images of up to {job.side} x {job.side}, forward + backward"
    )
    print(f"{'':12} {'patches, most':>14} {'wall, slowest rank':>20} {'CPU, all ranks':>16}   median of {job.repeats}")
    found = {}
    for name, _ in MODES:
        wall = statistics.median(max(rank[name][i].wall for rank in ranks) for i in range(job.repeats))
        cpu = statistics.median(sum(rank[name][i].cpu for rank in ranks) for i in range(job.repeats))
        patches = max(rank[name][0].patches for rank in ranks)
        found[name] = (patches, wall, cpu)
        print(f"{name:12} {patches:14} {wall:18.3f} s {cpu:14.3f} s")
    ratios = [mine / other for mine, other in zip(found["spread"], found["replicated"], strict=True)]
    print(f"{'ratio':12} {ratios[0]:14.3f} {ratios[1]:20.3f} {ratios[2]:16.3f}")


if __name__ == "__main__":
    sys.exit(main())
