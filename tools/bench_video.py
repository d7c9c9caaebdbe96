"""16 frames of a long 720p clip, decoded and resized: ours beside PyAV, decord, torchcodec and OpenCV.

CPU seconds of one thread, best of some repeats, everyone from the same bytes in memory to the same frames. What is not
installed (`pip install -e '.[bench]'`) or does not load is said and left out. Ours has its index beforehand, as in
training; its cost is printed apart.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data import dali
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.patches import plan, resize
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import VIDEO
from megatron_glmv.data.video import Clip, dali_can, decode_with_dali, decode_with_pyav

VISION = VisionConfig(depth=1, hidden=8, heads=1, ffn=8, merger_ffn=8)
BUDGET = 16 * 252 * 448
CLIPS: dict[str, tuple[str, str, str, int, dict[str, str]]] = {
    "h264": ("mp4", "libx264", "yuv420p", 60, {"preset": "ultrafast", "bf": "2", "b": "3M"}),
    "vp9": ("webm", "libvpx-vp9", "yuv420p", 128, {"deadline": "realtime", "cpu-used": "8", "b": "3M"}),
    "mjpeg": ("avi", "mjpeg", "yuvj420p", 1, {"q": "6"}),
}
Reader = Callable[[], torch.Tensor]


def film(name: str, seconds: int) -> bytes:
    """A 720p clip of moving texture with a little noise, 30 frames a second."""
    kind, codec, pixels, gop, options = CLIPS[name]
    noise = np.random.default_rng(0).integers(0, 13, (8, 720, 1280, 1)).astype(np.uint8)
    y, x = np.mgrid[:720, :1280]
    base = np.stack([(x // 4) % 200, (y // 3) % 200, ((x + y) // 5) % 200], -1).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip.{kind}")
        with av.open(str(path), "w") as box:
            stream = box.add_stream(codec, rate=30, options=options)
            stream.width, stream.height, stream.pix_fmt = 1280, 720, pixels
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            for n in range(30 * seconds):
                frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * n, axis=1) + noise[n % 8], format="rgb24")
                frame.pts, frame.time_base = n, Fraction(1, 30)
                box.mux(stream.encode(frame))
            box.mux(stream.encode(None))
        return path.read_bytes()


def sized(frames: Any, facts: MediaFacts) -> torch.Tensor:
    """All of them resize by the same kernel to the size that GLM's rule gives."""
    taken = plan(facts, DataConfig(video_max_pixels=BUDGET), VISION)
    return resize(torch.as_tensor(np.asarray(frames)), taken.height, taken.width)


def ours(data: bytes, facts: MediaFacts, wanted: list[int]) -> tuple[str, Reader]:
    taken = replace(plan(facts, DataConfig(video_max_pixels=BUDGET), VISION), frames=tuple(wanted))
    cpu = torch.device("cpu")
    back = dali.load(cpu)
    if back is not None and dali_can(back, facts):
        return "ours (dali)", lambda: decode_with_dali(back, [Clip(taken, facts, data)], cpu)[0]
    return "ours (pyav)", lambda: decode_with_pyav(Clip(taken, facts, data), cpu)


def with_pyav(data: bytes, facts: MediaFacts, wanted: list[int]) -> Reader:
    """Seek to the key frame before each frame, decode on from there, skip the seek inside the same group."""

    def read() -> torch.Tensor:
        out: list[Any] = []
        with av.open(io.BytesIO(data)) as box:
            stream = box.streams.video[0]
            stream.thread_count = 1
            assert stream.time_base is not None
            tick = float(stream.time_base)
            at, frames = -(10**9), iter(())
            for number in wanted:
                if number - at > 60 or number < at:
                    box.seek(int(number / facts.fps / tick), stream=stream)
                    frames = box.decode(stream)
                for frame in frames:
                    at = round(float(frame.pts) * tick * facts.fps)
                    if at >= number:
                        out.append(frame.to_ndarray(format="rgb24"))
                        break
        return sized(np.stack(out), facts)

    return read


def with_decord(data: bytes, facts: MediaFacts, wanted: list[int]) -> Reader:
    import decord

    return lambda: sized(decord.VideoReader(io.BytesIO(data), num_threads=1).get_batch(wanted).asnumpy(), facts)


def with_torchcodec(data: bytes, facts: MediaFacts, wanted: list[int]) -> Reader:
    from torchcodec.decoders import VideoDecoder

    def read() -> torch.Tensor:
        decoder = VideoDecoder(data, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
        return sized(decoder.get_frames_at(wanted).data, facts)

    return read


def with_opencv(data: bytes, facts: MediaFacts, wanted: list[int]) -> Reader:
    import cv2

    cv2.setNumThreads(1)
    file = tempfile.NamedTemporaryFile(suffix=Path(facts.member).suffix)  # noqa: SIM115 (it reads paths only)
    file.write(data)
    file.flush()

    def read() -> torch.Tensor:
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        out = []
        for number in wanted:
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            good, frame = capture.read()
            if not good:
                raise RuntimeError(f"no frame {number}")
            out.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        return sized(np.stack(out), facts)

    return read


OTHERS: dict[str, Callable[[bytes, MediaFacts, list[int]], Reader]] = {
    "PyAV with seeks": with_pyav,
    "decord": with_decord,
    "torchcodec": with_torchcodec,
    "OpenCV": with_opencv,
}


def cpu_ms(read: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = read()
        best = min(best, (time.process_time() - start) * 1e3)
    return best, result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--codecs", nargs="+", default=list(CLIPS), choices=list(CLIPS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.codecs:
        data = film(name, options.seconds)
        index, facts = cpu_ms(lambda data=data, name=name: probe(VIDEO, f"x.{CLIPS[name][0]}", data), 1)
        wanted = [int(i) for i in np.linspace(0, facts.frames - 1, options.frames)]
        print(f"{name}: {len(data) / 2**20:.0f} MiB, {facts.frames} frames; index {index:.0f} ms, once", flush=True)
        label, read = ours(data, facts, wanted)
        base, reference = cpu_ms(read, options.repeats)
        print(f"  {label:16s} {base:8.0f} ms CPU", flush=True)
        for other, make in OTHERS.items():
            try:
                spent, frames = cpu_ms(make(data, facts, wanted), options.repeats)
            except Exception as error:  # each has its own ways not to load or not to read
                print(f"  {other:16s} left out: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
                continue
            apart = (frames.float() - reference.float()).abs().mean().item()
            print(
                f"  {other:16s} {spent:8.0f} ms CPU = {spent / base:.2f} x ours; mean difference {apart:.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
