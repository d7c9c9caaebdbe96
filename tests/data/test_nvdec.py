"""Which clips go to the GPU's video engines, and that those which do not are decoded on the CPU, and say so.

The driver is a stand-in compiled from C, whose structure is written from the public header, so that offsets and the
order of calls are checked for real. Not covered: a real driver and real engines (tests/gpu/test_dali.py).
"""

from __future__ import annotations

import base64
import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data.decoder_checks import (
    CONFIG,
    decode_all,
    differences,
    growth,
    image_difference,
    jpegs,
    media,
    page,
    photograph,
    refuses_vanished_frames,
    resize_difference,
)
from data.media_files import VISION, X264, clip, encoded, named_clip, number_of, unpatchify

from megatron_glmv.data import dali
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.image import gpu_can
from megatron_glmv.data.media import MediaDecoder
from megatron_glmv.data.nvdec import CODECS, Limits, Nvdec, _Caps, ask
from megatron_glmv.data.patches import resize
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import IMAGE, VIDEO
from megatron_glmv.data.video import refused
from megatron_glmv.data.video_headers import check_units
from megatron_glmv.data.video_segments import segments

ALL = Nvdec({name: Limits((16, 16), (4096, 4096), 65536, 7) for name in CODECS})
CPU = torch.device("cpu")


def built(folder: Path, name: str, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the stand-in for the driver cannot be built")
    source, library = Path(__file__).with_name("driver_stand_in.c"), folder / name
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", str(library), str(source)], check=True)
    return library


class Driver:
    """The stand-in, one library for both of the driver's."""

    def __init__(self, path: Path) -> None:
        self.path, self.library = str(path), ctypes.CDLL(str(path))

    def set(self, **numbers: int) -> None:
        for name, value in numbers.items():
            ctypes.c_int.in_dll(self.library, name).value = value

    def fail(self, name: str) -> None:
        (ctypes.c_char * 64).in_dll(self.library, "failing").value = name.encode()

    def number(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, name).value

    def ask(self, index: int = 0) -> Nvdec:
        return ask(index, self.path, self.path)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(built(tmp_path_factory.mktemp("driver"), "libdriver.so"))


@pytest.fixture
def driver(library: Driver) -> Iterator[Driver]:
    yield library
    library.set(devices=2, old_header=0)
    library.fail("")
    assert (library.number("retained"), library.number("current")) == (0, 0), "every context was given back"


def test_the_structure_has_the_headers_layout(driver: Driver) -> None:
    names = ["eCodecType", "eChromaFormat", "nBitDepthMinus8", "bIsSupported", "nNumNVDECs", "nOutputFormatMask"]
    names += ["nMaxWidth", "nMaxHeight", "nMaxMBCount", "nMinWidth", "nMinHeight"]
    expected = list((ctypes.c_int * (1 + len(names))).in_dll(driver.library, "layout"))
    assert [ctypes.sizeof(_Caps), *(getattr(_Caps, name).offset for name in names)] == expected
    assert expected[0] == 88


def test_the_drivers_answer_is_what_is_known(driver: Driver) -> None:
    asked = driver.number("questions")
    found = driver.ask(1)
    assert driver.number("device_asked") == 1 and driver.number("questions") == asked + len(CODECS)
    assert found.reason == ""
    assert set(found.codecs) == {"mpeg4", "h264", "hevc", "vp9"}, "no AV1, and VP8 not into 8 bit"
    assert found.codecs["h264"] == Limits((48, 16), (4096, 4080), 65536, 7)
    assert found.codecs["hevc"] == Limits((144, 144), (8192, 8176), 262144, 7)
    driver.set(old_header=1)
    assert set(driver.ask().codecs) == {"mpeg4", "h264", "hevc", "vp8", "vp9"}
    assert driver.ask().codecs["vp9"].engines == 0


@pytest.mark.parametrize(
    ("codec", "pixels", "size", "words"),
    [
        ("h264", "yuv420p", (1920, 1080), ""),
        ("h264", "yuvj420p", (48, 16), ""),
        ("h264", "yuv420p", (4096, 4080), ""),
        ("h264", "yuv420p", (46, 1080), "46x1080, the GPU decodes h264 from 48x16 on"),
        ("h264", "yuv420p", (4097, 16), "4097x16, the GPU decodes h264 up to 4096x4080"),
        ("h264", "yuv420p", (64, 4081), "64x4081, the GPU decodes h264 up to 4096x4080"),
        ("mpeg4", "yuv420p", (2032, 1024), ""),
        ("mpeg4", "yuv420p", (2032, 1025), "2032x1025 is 8255 macroblocks, the GPU decodes 8128 of mpeg4"),
        ("h264", "yuv420p10le", (640, 480), "pixels are yuv420p10le, on the GPU only 8 bit 4:2:0 is decoded"),
        ("hevc", "yuv444p", (640, 480), "pixels are yuv444p, on the GPU only 8 bit 4:2:0 is decoded"),
        ("h264", "", (640, 480), "pixels are not known, on the GPU only 8 bit 4:2:0 is decoded"),
        ("av1", "yuv420p", (640, 480), "the GPU decodes no av1"),
        ("mjpeg", "yuvj420p", (640, 480), "mjpeg is decoded on the CPU"),
    ],
)
def test_a_clip_is_refused_with_its_reason(
    driver: Driver, codec: str, pixels: str, size: tuple[int, int], words: str
) -> None:
    assert driver.ask().refuses(codec, pixels, *size) == words


def test_every_failure_is_one_line_and_no_codec(driver: Driver, tmp_path: Path) -> None:
    for call, words in {
        "cuInit": "cuInit says error 999",
        "cuDeviceGet": "cuDeviceGet says error 999",
        "cuDevicePrimaryCtxRetain": "cuDevicePrimaryCtxRetain says error 2",
        "cuvidGetDecoderCaps": "cuvidGetDecoderCaps says error 999",
    }.items():
        driver.fail(call)
        found = driver.ask()
        assert (found.codecs, found.reason) == ({}, words)
        assert found.refuses("h264", "yuv420p", 640, 480) == words
        assert driver.number("retained") == driver.number("current") == 0
    driver.fail("")
    driver.set(devices=1)
    assert driver.ask(1).reason == "cuDeviceGet says CUDA_ERROR_INVALID_DEVICE (101)"
    without = str(built(tmp_path, "libwithout.so", "-DWITHOUT_CAPS"))
    assert ask(0, driver.path, without).reason == "the driver's library has no cuvidGetDecoderCaps"


def test_a_missing_library_says_what_a_container_needs(driver: Driver, tmp_path: Path) -> None:
    missing = str(tmp_path / "libnvcuvid.so.1")
    reason = ask(0, driver.path, missing).reason
    assert missing in reason and "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in reason and "\n" not in reason
    (tmp_path / "libcuda.so.1").write_text("no library")
    assert "libcuda.so.1" in ask(0, str(tmp_path / "libcuda.so.1"), driver.path).reason


def limited(nvdec: Nvdec) -> MediaDecoder:
    """DALI's CPU back end, given what the GPU's would be given."""
    (on_cpu,) = dali.load(CPU)
    return MediaDecoder(CONFIG, VISION, backends=(dali.Dali(on_cpu.ndd, CPU, 1, nvdec),))


def test_what_the_card_does_not_take_is_decoded_on_the_cpu_and_says_so() -> None:
    small = Limits((16, 16), (160, 96), 65536, 7)
    flat = Limits((16, 16), (160, 112), 10 * 6, 7)
    tall = Limits((16, 128), (4096, 4096), 65536, 7)
    for nvdec, decoder in {
        "all": (ALL, "dali"),
        "no vp9": (Nvdec({"h264": ALL.codecs["h264"]}), "pyav"),
        "smaller": (Nvdec({"vp9": small}), "pyav"),
        "fewer blocks": (Nvdec({"vp9": flat}), "pyav"),
        "larger": (Nvdec({"vp9": tall}), "pyav"),
        "no driver": (Nvdec(reason="libcuda.so.1: cannot open"), "pyav"),
    }.values():
        found, numbers = decode_all(limited(nvdec), *media("vp9.webm"))
        assert (found, numbers) == (decoder, [0, 12, 24, 36])


def test_a_back_end_that_fails_leaves_the_clip_to_the_next() -> None:
    """The driver lists H.264, and DALI's CPU back end raises on it: as a GPU whose decoder cannot be made."""
    decoder = limited(ALL)
    for name in ("h264.mp4", "hevc_open.mp4", "av1.mp4", "mpeg4.mp4"):
        plan, facts, data = media(name)
        assert decoder._backends and refused(decoder._backends[0], facts) == ""
        assert decode_all(decoder, plan, facts, data) == ("pyav", [0, 12, 24, 36])
    (on_cpu,) = dali.load(CPU)
    both = MediaDecoder(CONFIG, VISION, backends=(dali.Dali(on_cpu.ndd, CPU, 1, Nvdec(reason="none")), on_cpu))
    assert decode_all(both, *media("vp9.webm")) == ("dali", [0, 12, 24, 36])


def test_other_layouts_and_rotated_sizes_are_judged_as_coded() -> None:
    (on_cpu,) = dali.load(CPU)
    back = dali.Dali(on_cpu.ndd, CPU, 1, Nvdec({"vp9": Limits((16, 16), (160, 112), 70, 7)}))
    _, facts, _ = media("vp9.webm")
    upright = MediaFacts.from_json(facts.to_json() | {"width": 112, "height": 160, "rotation": 90})
    assert refused(back, facts) == refused(back, upright) == ""
    assert "yuv444p" in refused(back, media("vp9_444.webm")[1])
    assert "not known" in refused(back, MediaFacts.from_json(facts.to_json() | {"mode": ""})), "an older index"


@pytest.mark.parametrize("name", ["h264.mp4", "h264_open.mp4", "hevc_open.mp4", "av1.mp4", "mpeg4.mp4", "vp9.webm"])
def test_packets_are_known_whole_or_not(name: str) -> None:
    """Every packet of a sound clip passes; none does that is zeros or, but for MPEG-4 and VP9, is cut in the middle."""
    data = named_clip(name)
    facts = probe(VIDEO, name, data)
    extradata, table = base64.b64decode(facts.extradata), facts.packets
    payloads = [data[at : at + size] for at, size in zip(table.offset.tolist(), table.size.tolist(), strict=True)]
    for payload in payloads:
        check_units(facts.format, payload, extradata)
        with pytest.raises(ValueError, match=r"damaged|picture|marker"):
            check_units(facts.format, bytes(len(payload)), extradata)
        if facts.format in ("h264", "hevc", "av1"):
            with pytest.raises(ValueError, match="damaged"):
                check_units(facts.format, payload[: len(payload) // 2], extradata)


def test_a_packet_with_parameter_sets_of_its_own_is_not_for_the_engine() -> None:
    """A size that changes on the way would be decoded into buffers of the first one."""
    small, large = (clip("mp4", codec="libx264", options=X264, size=size) for size in ((160, 112), (320, 240)))
    facts = probe(VIDEO, "x.mp4", small)
    own, other = (base64.b64decode(probe(VIDEO, "x.mp4", data).extradata) for data in (small, large))
    parameters = {key: found[8 : 8 + int.from_bytes(found[6:8], "big")] for key, found in (("own", own), ("x", other))}
    first = small[int(facts.packets.offset[0]) :][: int(facts.packets.size[0])]
    check_units("h264", len(parameters["own"]).to_bytes(4, "big") + parameters["own"] + first, own)
    with pytest.raises(ValueError, match="parameter sets"):
        check_units("h264", len(parameters["x"]).to_bytes(4, "big") + parameters["x"] + first, own)
    with pytest.raises(ValueError, match="four bytes"):
        check_units("h264", first, own[:4] + bytes([own[4] & 0xFC]) + own[5:])


def test_the_checks_of_the_gpu_hold_on_the_cpu() -> None:
    """Those of tests/gpu/test_dali.py, on DALI's CPU back end: their bodies run, and every tolerance is 0 here."""
    decoder = limited(ALL)
    for name in ("vp9.webm", "vp9_altref.mp4", "vp9_vfr.webm"):
        largest, mean, numbers, expected = differences(decoder, *media(name))
        assert (largest, mean) == (0, 0.0) and numbers == expected and len(numbers) >= 32
    refuses_vanished_frames(decoder, media("vp9.webm"), media("vp8.webm"))
    for data in jpegs().values():
        assert image_difference(decoder, data) == (0, 0.0)
    assert resize_difference(CPU, page(), 616, 756) == (0, 0.0)
    assert growth(decoder, [media("vp9.webm")], lambda: 0, 1, 2) == 0


def test_only_whole_jpegs_in_colour_or_grey_are_for_the_gpu() -> None:
    sound = jpegs()["4:2:0"]
    picture = photograph(480, 320)
    for data, taken in {
        sound: True,
        sound + bytes(100): True,
        sound[:-400]: False,
        sound + b"and more": False,
        encoded(picture.convert("CMYK"), "JPEG"): False,
        encoded(picture, "PNG"): False,
    }.items():
        assert gpu_can(probe(IMAGE, "0", data), data) is taken


def test_the_float_resize_of_a_gpu_is_within_its_tolerance() -> None:
    """CUDA has no uint8 kernel; its float32 one, here on the CPU, differs where the integer one rounds between axes."""
    for picture, size in ((photograph(), (448, 784)), (photograph(), (1092, 1932)), (page(), (756, 616))):
        pixels = torch.from_numpy(np.array(picture))[None]
        planes = pixels.permute(0, 3, 1, 2).float()
        out = torch.nn.functional.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
        rounded = out.round().clamp(0, 255).permute(0, 2, 3, 1)
        apart = (rounded - resize(pixels, *size).float()).abs()
        assert 0 < apart.mean() <= 0.25 and apart.max() <= 20


def test_a_segment_of_a_damaged_packet_never_reaches_the_engine() -> None:
    """Packets of a VP9 clip outside the wanted groups do not matter."""
    plan, facts, data = media("vp9.webm")
    wanted = {packet for segment in segments(facts, plan.frames) for packet in segment.packets}
    at, size = int(facts.packets.offset[16]), int(facts.packets.size[16])
    assert 16 in wanted, "the key frame of the second group"
    blank = data[:at] + bytes(size) + data[at + size :]
    (done,) = limited(ALL).decode([(plan, facts, blank)])
    assert done.patches is None and done.error
    assert number_of(next(iter(unpatchify(limited(ALL).decode([(plan, facts, data)])[0].patches, plan)))) == 0
