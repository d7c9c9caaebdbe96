"""Which clips the video engines of a GPU decode, as its driver says: cuvidGetDecoderCaps, through ctypes.

The engines differ by chip (Hopper has no AV1), and a container has the library only where the driver was asked for its
video part (NVIDIA_DRIVER_CAPABILITIES with `video`). Structure, enumerations and the order of calls: cuviddec.h of
NVIDIA's Video Codec SDK (2010-2024; the structure has kept its 88 bytes since 2017).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CODECS = {"mpeg4": 2, "h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}
"""FFmpeg's names, and cudaVideoCodec. MJPEG stays on the CPU: DALI's GPU path reads the range of the colours from the
stream, where a JPEG has none, and converts full range as limited."""
PIXELS = frozenset({"yuv420p", "yuvj420p"})
"""Layouts whose frames are those of the CPU within 2 levels. NVDEC gives NV12, 8 bit and 4:2:0, whatever it gets:
10 bit would be rounded twice (mean 0.3), 4:4:4 would lose its chroma."""
BLOCK = 16
"""Sides of a macroblock: coded sizes are whole ones."""
_CHROMA_420, _NV12 = 1, 0


class _Caps(ctypes.Structure):
    """CUVIDDECODECAPS: the first four are asked, the others answered."""

    _fields_ = (
        ("eCodecType", ctypes.c_int),
        ("eChromaFormat", ctypes.c_int),
        ("nBitDepthMinus8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("bIsSupported", ctypes.c_ubyte),
        ("nNumNVDECs", ctypes.c_ubyte),
        ("nOutputFormatMask", ctypes.c_ushort),
        ("nMaxWidth", ctypes.c_uint),
        ("nMaxHeight", ctypes.c_uint),
        ("nMaxMBCount", ctypes.c_uint),
        ("nMinWidth", ctypes.c_ushort),
        ("nMinHeight", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 11),
    )


@dataclass(frozen=True)
class Limits:
    """What the driver says of one codec at 8 bit 4:2:0. Sizes are coded pixels."""

    least: tuple[int, int]
    """(width, height)."""
    most: tuple[int, int]
    blocks: int
    """Most macroblocks of a frame."""
    engines: int
    """NVDEC engines of the chip; 0 where the driver does not say."""


@dataclass(frozen=True)
class Nvdec:
    """What one GPU decodes."""

    codecs: Mapping[str, Limits] = field(default_factory=dict)
    reason: str = ""
    """Why nothing is known, in one line; then every clip goes to the CPU."""

    def refuses(self, codec: str, pixels: str, width: int, height: int) -> str:
        """Why a clip of this size cannot be decoded here, in one line; empty where it can."""
        if self.reason:
            return self.reason
        if codec not in self.codecs:
            return f"the GPU decodes no {codec}" if codec in CODECS else f"{codec} is decoded on the CPU"
        if pixels not in PIXELS:
            return f"pixels are {pixels or 'not known'}, on the GPU only 8 bit 4:2:0 is decoded"
        limits = self.codecs[codec]
        coded = tuple(-(-side // BLOCK) * BLOCK for side in (width, height))
        blocks = coded[0] * coded[1] // BLOCK**2
        least, most = ("x".join(map(str, sides)) for sides in (limits.least, limits.most))
        if width < limits.least[0] or height < limits.least[1]:
            return f"{width}x{height}, the GPU decodes {codec} from {least} on"
        if coded[0] > limits.most[0] or coded[1] > limits.most[1]:
            return f"{width}x{height}, the GPU decodes {codec} up to {most}"
        if blocks > limits.blocks:
            return f"{width}x{height} is {blocks} macroblocks, the GPU decodes {limits.blocks} of {codec}"
        return ""


class _Failed(Exception):
    """One line for the user."""


def ask(index: int, cuda: str = "libcuda.so.1", cuvid: str = "libnvcuvid.so.1") -> Nvdec:
    """What GPU number `index` (as CUDA counts them) decodes; never raises.

    cuda, cuvid: the driver's libraries.
    """
    try:
        driver, video = _library(cuda), _library(cuvid)
        with _context(driver, index):
            return Nvdec({name: limits for name in CODECS if (limits := _limits(driver, video, name)) is not None})
    except _Failed as failed:
        return Nvdec(reason=str(failed))


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        hint = "; containers need NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" if "nvcuvid" in name else ""
        raise _Failed(f"{str(error).splitlines()[0]}{hint}") from error


def _call(driver: ctypes.CDLL, library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """A function that returns CUresult. Raises _Failed where it is missing or fails."""
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise _Failed(f"the driver's library has no {name}") from error
    function.restype = ctypes.c_int
    code = function(*arguments)
    if code:
        words = ctypes.c_char_p()
        known = hasattr(driver, "cuGetErrorName") and driver.cuGetErrorName(code, ctypes.byref(words)) == 0
        said = f"{words.value.decode()} ({code})" if known and words.value else f"error {code}"
        raise _Failed(f"{name} says {said}")


@contextmanager
def _context(driver: ctypes.CDLL, index: int) -> Iterator[None]:
    """The primary context of a device, which torch and DALI use too, current inside."""
    device, context, popped = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    _call(driver, driver, "cuInit", 0)
    _call(driver, driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call(driver, driver, "cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            _call(driver, driver, "cuCtxPopCurrent_v2", ctypes.byref(popped))
    finally:
        _call(driver, driver, "cuDevicePrimaryCtxRelease_v2", device)


def _limits(driver: ctypes.CDLL, video: ctypes.CDLL, codec: str) -> Limits | None:
    """None where the chip does not decode it, or not into NV12. Raises _Failed."""
    caps = _Caps(eCodecType=CODECS[codec], eChromaFormat=_CHROMA_420, nBitDepthMinus8=0)
    _call(driver, video, "cuvidGetDecoderCaps", ctypes.byref(caps))
    # the mask was a reserved field in the header of 2017: 0 there, and NV12 the only format
    if not caps.bIsSupported or not (caps.nOutputFormatMask >> _NV12 & 1 or caps.nOutputFormatMask == 0):
        return None
    return Limits(
        least=(caps.nMinWidth, caps.nMinHeight),
        most=(caps.nMaxWidth, caps.nMaxHeight),
        blocks=caps.nMaxMBCount,
        engines=caps.nNumNVDECs,
    )
