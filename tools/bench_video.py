"""16 frames of a long 720p clip, decoded and resized: ours beside PyAV, decord, torchcodec and OpenCV.

CPU seconds of one thread, best of some repeats, everyone from the same bytes in memory to the same frames. What is not
installed (`pip install -e '.[bench]'`) or does not load is said and left out. Ours has its index beforehand, as in
training; its cost is printed apart. On a GPU, NVDEC has a row with its wall time, alone and with eight clips in a call,
and the CPU seconds that it leaves to others.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
from megatron_glmv.data.media import GPU_THREADS
from megatron_glmv.data.patches import plan, resize
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import VIDEO
from megatron_glmv.data.video import Clip, dali_can, decode_with_dali, decode_with_pyav, refused

VISION = VisionConfig(depth=1, hidden=8, heads=1, ffn=8, merger_ffn=8)
NVDEC, CLIPS_AT_ONCE = "ours (NVDEC)", 8
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
    able = [back for back in dali.load(cpu) if dali_can(back, facts)]
    if able:
        return "ours (dali)", lambda: decode_with_dali(able[0], [Clip(taken, facts, data)], cpu)[0]
    return "ours (pyav)", lambda: decode_with_pyav(Clip(taken, facts, data), cpu)


def on_gpu(
    backends: Sequence[dali.Dali], device: torch.device, data: bytes, facts: MediaFacts, wanted: list[int]
) -> dict[str, Reader] | str:
    """Readers of one clip, and of CLIPS_AT_ONCE of them in one call; or why there are none."""
    if device.type != "cuda":
        return "no GPU: not run"
    if not backends:
        return "left out: DALI is not installed or does not load"
    if reason := refused(backends[0], facts):
        return f"left out: {reason}"
    taken = replace(plan(facts, DataConfig(video_max_pixels=BUDGET), VISION), frames=tuple(wanted))

    def read(count: int) -> torch.Tensor:
        frames = decode_with_dali(backends[0], [Clip(taken, facts, data)] * count, device)[-1]
        torch.cuda.synchronize(device)
        return frames

    return {NVDEC: lambda: read(1), f"{CLIPS_AT_ONCE} at once": lambda: read(CLIPS_AT_ONCE)}


def gpu_rows(readers: dict[str, Reader] | str, base: float, reference: torch.Tensor, repeats: int) -> list[str]:
    """Lines to print: CPU and wall milliseconds a clip, and the CPU seconds that are freed against `base` ms."""
    if isinstance(readers, str):
        return [f"{NVDEC:16s} {readers}"]
    rows = []
    for (name, read), clips in zip(readers.items(), (1, CLIPS_AT_ONCE), strict=True):
        read()  # makes the context and the decoder
        start = time.perf_counter()
        cpu, frames = cpu_ms(read, repeats)
        wall = (time.perf_counter() - start) * 1e3 / repeats / clips
        apart = (frames.cpu().float() - reference.float()).abs().mean().item()
        freed = (base - cpu / clips) / 1e3
        rows.append(
            f"{name:16s} {cpu / clips:8.0f} ms CPU, {wall:.0f} ms wall a clip: {freed:.3f} CPU seconds freed a clip; "
            f"mean difference {apart:.2f}"
        )
    return rows


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
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    backends = dali.load(device, GPU_THREADS) if device.type == "cuda" else ()
    for name in options.codecs:
        data = film(name, options.seconds)
        index, facts = cpu_ms(lambda data=data, name=name: probe(VIDEO, f"x.{CLIPS[name][0]}", data), 1)
        wanted = [int(i) for i in np.linspace(0, facts.frames - 1, options.frames)]
        print(f"{name}: {len(data) / 2**20:.0f} MiB, {facts.frames} frames; index {index:.0f} ms, once", flush=True)
        label, read = ours(data, facts, wanted)
        base, reference = cpu_ms(read, options.repeats)
        print(f"  {label:16s} {base:8.0f} ms CPU", flush=True)
        for row in gpu_rows(on_gpu(backends, device, data, facts, wanted), base, reference, options.repeats):
            print(f"  {row}", flush=True)
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
