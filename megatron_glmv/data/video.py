"""Frames of videos by DALI, or by PyAV what DALI cannot: the same frames, bit for bit on the CPU.

Shapes: F wanted frames, H and W pixels as decoded (before the rotation). Both back ends get the same segments and
convert with BT.601 whatever the file says, as DALI always does.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_glmv.data.dali import CPU_CODECS, Dali
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.patches import resize
from megatron_glmv.data.types import MediaPlan
from megatron_glmv.data.video_headers import check_units
from megatron_glmv.data.video_segments import Segment, can_mux, mux, segments

if TYPE_CHECKING:
    import av

BATCH_BYTES = 1 << 28
"""Decoded pixels of one DALI call: a long 4K clip goes through in parts, each resized before the next."""
SCALE = "flags=bilinear+full_chroma_int+accurate_rnd:in_color_matrix=bt601"
"""swscale as DALI's CPU back end calls it. PyAV's own `reformat` shifts H.264 and HEVC chroma."""
PADDING = 64
"""Zero bytes behind each packet: FFmpeg reads past the end, and PyAV's Packet(bytes) adds none."""
FFMPEG_DECODERS = {"av1": "libdav1d"}
"""Where FFmpeg's decoder of the codec's own name needs hardware."""


@dataclass(frozen=True)
class Clip:
    """One video to decode: `data` are the bytes that `facts` describes."""

    plan: MediaPlan
    facts: MediaFacts
    data: bytes

    @cached_property
    def segments(self) -> list[Segment]:
        return segments(self.facts, self.plan.frames)

    @cached_property
    def payload(self) -> Callable[[int], bytes]:
        """Packet number -> its bytes; the container is read again only where packets are not stored in one piece."""
        table = self.facts.packets
        if table.contiguous:
            return lambda n: self.data[int(table.offset[n]) : int(table.offset[n]) + int(table.size[n])]
        from megatron_glmv.data.video_index import complaints, demux

        with complaints(self.facts.member):
            payloads = demux(self.facts.member, self.data).payloads
        if [len(p) for p in payloads] != table.size.tolist():
            raise SampleError(self.facts.member, "packets differ from the index")
        return payloads.__getitem__

    @property
    def frame_bytes(self) -> int:
        return 3 * self.facts.width * self.facts.height

    def collector(self, device: torch.device) -> Frames:
        return Frames(self, device)


class Frames:
    """The wanted frames of one clip, resized as they come: uint8 [F, plan.height, plan.width, 3]."""

    def __init__(self, clip: Clip, device: torch.device) -> None:
        self.clip = clip
        self.rows = {frame: row for row, frame in enumerate(sorted(set(clip.plan.frames)))}
        size = (len(self.rows), clip.plan.height, clip.plan.width, 3)
        self.pixels = torch.empty(size, dtype=torch.uint8, device=device)
        self.missing = set(self.rows)

    def put(self, frames: Sequence[int], pixels: torch.Tensor) -> None:
        """`pixels` uint8 [len(frames), H, W, 3] as decoded. Raises SampleError on another size than indexed."""
        facts = self.clip.facts
        turns = facts.rotation // 90
        shown = torch.rot90(pixels, turns, (1, 2)) if turns else pixels
        if tuple(shown.shape) != (len(frames), facts.height, facts.width, 3):
            found = "x".join(map(str, shown.shape))
            raise SampleError(facts.member, f"{len(frames)} frames of {facts.height}x{facts.width} decoded to {found}")
        rows = [self.rows[frame] for frame in frames]
        self.pixels[rows] = resize(shown.to(self.pixels.device), self.clip.plan.height, self.clip.plan.width)
        self.missing -= set(frames)

    def result(self) -> torch.Tensor:
        """Frames in the plan's order, repeats included. Raises SampleError when one did not come."""
        if self.missing:
            raise SampleError(self.clip.facts.member, f"frames {sorted(self.missing)[:8]} did not decode")
        return self.pixels[[self.rows[frame] for frame in self.clip.plan.frames]]


def dali_can(dali: Dali, facts: MediaFacts) -> bool:
    return not refused(dali, facts)


def refused(dali: Dali, facts: MediaFacts) -> str:
    """Why this back end of DALI is not given the clip, in one line; empty where it is."""
    if facts.uneven:
        return "its size or pixel layout changes on the way"
    if dali.nvdec is not None:
        turned = facts.rotation % 180 != 0
        width, height = (facts.height, facts.width) if turned else (facts.width, facts.height)
        if reason := dali.nvdec.refuses(facts.format, facts.mode, width, height):
            return reason
    elif facts.format not in CPU_CODECS:
        return f"DALI's CPU wheel decodes no {facts.format}"
    return "" if can_mux(facts) else f"{facts.format} is not stored with length-prefixed units"


def decode_with_dali(dali: Dali, clips: Sequence[Clip], device: torch.device) -> list[torch.Tensor]:
    """uint8 [F, height, width, 3] of each clip; segments of all clips share DALI's calls.

    Raises RuntimeError or SampleError when one of them fails: decode one by one then.
    """
    collected = [clip.collector(device) for clip in clips]
    batch: list[tuple[Frames, Segment]] = []
    size = 0
    for frames in collected:
        most = max(1, BATCH_BYTES // frames.clip.frame_bytes)
        for whole in frames.clip.segments:
            for start in range(0, len(whole.frames), most):
                part = Segment(whole.packets, whole.frames[start : start + most])
                cost = len(part.frames) * frames.clip.frame_bytes
                if batch and size + cost > BATCH_BYTES:
                    _dali_call(dali, batch)
                    batch, size = [], 0
                batch.append((frames, part))
                size += cost
    if batch:
        _dali_call(dali, batch)
    return [frames.result() for frames in collected]


def _dali_call(dali: Dali, batch: Sequence[tuple[Frames, Segment]]) -> None:
    if dali.nvdec is not None:
        for frames, segment in batch:
            _check_segment(frames.clip, segment)
    muxed = [mux(frames.clip.facts, segment, frames.clip.payload) for frames, segment in batch]
    with dali.context():
        files = dali.ndd.batch([np.frombuffer(file, np.uint8) for file, _ in muxed])
        numbers = dali.ndd.batch([np.array(wanted, np.int32) for _, wanted in muxed])
        # a literal: with a batch as input, DALI takes no variable here; "none" raises where the default gives black
        decoded = dali.ndd.decoders.video(files, device=dali.device, frames=numbers, pad_mode="none").tensors
        for (frames, segment), pixels in zip(batch, decoded, strict=True):
            frames.put(segment.frames, dali.torch(pixels))


def _check_segment(clip: Clip, segment: Segment) -> None:
    """Raises SampleError where a packet holds no whole picture: NVDEC skips or conceals it without an error, and DALI
    then returns whatever lay in its buffer."""
    extradata = base64.b64decode(clip.facts.extradata)
    for number in segment.packets:
        try:
            check_units(clip.facts.format, clip.payload(number), extradata)
        except ValueError as error:
            raise SampleError(clip.facts.member, f"packet {number}: {error}") from error


def decode_with_pyav(clip: Clip, device: torch.device) -> torch.Tensor:
    """uint8 [F, height, width, 3], one frame at a time in memory. Raises SampleError on damage."""
    from megatron_glmv.data.video_index import complaints

    frames = clip.collector(device)
    graph: dict[tuple[int, int, str], av.filter.Graph] = {}
    with complaints(clip.facts.member):
        for segment in clip.segments:
            _pyav_segment(clip, segment, frames, graph)
    return frames.result()


def _pyav_segment(
    clip: Clip, segment: Segment, frames: Frames, graphs: dict[tuple[int, int, str], av.filter.Graph]
) -> None:
    import av

    facts = clip.facts
    context = av.CodecContext.create(FFMPEG_DECODERS.get(facts.format, facts.format), "r")
    assert isinstance(context, av.VideoCodecContext)
    context.extradata = base64.b64decode(facts.extradata) or None
    context.codec_tag = bytes.fromhex(facts.tag).decode("latin-1")
    context.thread_count = 1
    context.options = {"err_detect": "explode"}  # else a damaged slice is painted over
    order = facts.packets.order
    wanted = {int(order[frame]): frame for frame in segment.frames}
    for number in (*segment.packets, None):
        packet = None
        if number is not None:
            payload = clip.payload(number)
            packet = av.Packet(memoryview(payload + bytes(PADDING))[: len(payload)])
            packet.pts = number  # comes back on the frame
        for frame in context.decode(packet):
            if frame.pts in wanted and not frame.is_corrupt:
                kind = (frame.width, frame.height, frame.format.name)
                if kind not in graphs:
                    graphs[kind] = rgb_graph(frame)
                graphs[kind].push(frame)
                shown = graphs[kind].pull()
                assert isinstance(shown, av.VideoFrame)
                frames.put((wanted[frame.pts],), torch.from_numpy(shown.to_ndarray())[None])


def rgb_graph(frame: av.VideoFrame) -> av.filter.Graph:
    """YUV to RGB for frames like this one, bit-equal to DALI's CPU conversion."""
    from fractions import Fraction

    import av.filter

    graph = av.filter.Graph()
    size = {"width": frame.width, "height": frame.height}
    source = graph.add_buffer(**size, format=frame.format, time_base=Fraction(1))
    graph.link_nodes(source, graph.add("scale", SCALE), graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    return graph
