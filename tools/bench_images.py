"""Decode, resize, normalise and patchify a JPEG: ours beside transformers' Glm4v image processor (Pillow, torchvision).

CPU seconds of one thread, best of some repeats, same bytes, one image at a time; the results are compared bit by bit.
On a GPU, nvJPEG has a row for calls of 16 images, with the CPU seconds that it leaves to others.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.media import MediaDecoder
from megatron_glmv.data.patches import normalise, plan
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import IMAGE

VISION = VisionConfig(depth=1, hidden=8, heads=1, ffn=8, merger_ffn=8)
AT_ONCE = 16
SIZES = {"1080p, native": 9633792, "1080p to 448 x 784": 2 * 448 * 784}


def photo() -> bytes:
    y, x = np.mgrid[:1080, :1920]
    base = np.stack([x * 255 // 1920, y * 255 // 1080, (x * y // 4000) % 256], -1)
    noise = np.random.default_rng(0).normal(0, 8, (270, 480, 3)).repeat(4, 0).repeat(4, 1)
    out = io.BytesIO()
    Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def processor(most: int) -> Any:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # its CUDA wheel lacks them on a CPU, and does not import without
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor

    return Glm4vImageProcessor(size={"shortest_edge": 12544, "longest_edge": most})


def cpu_ms(read: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = read()
        best = min(best, (time.process_time() - start) * 1e3)
    return best, result


def on_gpu(config: DataConfig, item: Any, mine: float, repeats: int) -> str:
    """One line: calls of AT_ONCE images, decoded, resized, patchified and normalised on the GPU, against `mine` ms."""
    if not torch.cuda.is_available():
        return "(nvJPEG): no GPU: not run"
    decoder = MediaDecoder(config, VISION, "cuda:0")

    def read() -> str:
        done = decoder.decode([item] * AT_ONCE)
        for one in done:
            assert one.patches is not None, one.error
            normalise(one.patches, VISION)
        torch.cuda.synchronize()
        return done[0].decoder

    read()  # makes the context and the decoder
    start = time.perf_counter()
    spent, name = cpu_ms(read, repeats)
    wall = (time.perf_counter() - start) / repeats / AT_ONCE
    spent /= AT_ONCE
    return f"({name}): {1 / wall:.1f} images/s, {spent:.1f} ms CPU: {(mine - spent) / 1e3:.4f} CPU seconds freed"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = photo()
    facts = probe(IMAGE, "0.jpg", data)
    theirs = processor(min(SIZES.values()))
    for name, most in SIZES.items():
        config = DataConfig(image_max_pixels=most)
        taken, decoder = plan(facts, config, VISION), MediaDecoder(config, VISION)

        def decoded(decoder: MediaDecoder = decoder, taken: Any = taken) -> torch.Tensor:
            done = decoder.decode([(taken, facts, data)])[0]
            assert done.patches is not None, done.error
            return done.patches

        def ours(decoded: Callable[[], torch.Tensor] = decoded) -> torch.Tensor:
            return normalise(decoded(), VISION)

        def reference(most: int = most) -> torch.Tensor:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            size = {"shortest_edge": 12544, "longest_edge": most}
            found: torch.Tensor = theirs(images=[image], size=size, return_tensors="pt")["pixel_values"]
            return found

        other, b = cpu_ms(reference, options.repeats)
        mine, a = cpu_ms(ours, options.repeats)
        part, _ = cpu_ms(decoded, options.repeats)
        equal = "equal" if torch.equal(a, b) else f"differ by {(a - b).abs().max():.3g}"
        print(f"{name} ({taken.width} x {taken.height}): transformers {other:.1f} ms CPU; patches {equal}")
        for what, spent in (("to normalised patches", mine), ("to uint8 patches, normalised on the device", part)):
            ratio = f"{1e3 / spent:.1f} against {1e3 / other:.1f} images/s a core = {other / spent:.2f} x"
            print(f"  ours {what}: {spent:.1f} ms, {ratio}")
        print(f"  ours {on_gpu(config, (taken, facts, data), mine, options.repeats)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
