"""NVDEC and nvJPEG through DALI against the decoders of the CPU, on clips and images that the tests make.

Derivation. Both sides decode the same YUV; H.264, HEVC, VP9 and AV1 define it to the bit. They convert with BT.601 at
another precision and place chroma alike, which an emulation of DALI's kernel puts at 2 levels at most and 0.1 to 0.2 in
the mean. JPEG does not define its inverse transform to the bit: DALI's own tests allow a mean of 1. CUDA's bicubic
resize is float32, the CPU's integer: mean 0.18, at most 18 levels on black text (data/test_nvdec.py).

Written without a GPU and not run on one yet (docs/data.md); the checks run on the CPU in data/test_nvdec.py.
Not covered: damage inside a picture, which NVDEC conceals; long clips.
"""

from __future__ import annotations

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
from data.media_files import VISION, encoded

from megatron_glmv.data.media import MediaDecoder
from megatron_glmv.data.nvdec import CODECS, PIXELS, Nvdec
from megatron_glmv.data.patches import plan
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import IMAGE

GPU = torch.device("cuda", 0)
SIZE, CROPPED = (320, 240), (328, 250)
"""The second is no multiple of 16: the engine decodes 336 x 256 and shows a part."""
NAMES = ["h264.mp4", "h264_open.mp4", "h264_vfr.mp4", "hevc_open.mp4", "vp8.webm", "vp9.webm", "vp9_altref.mp4"]
NAMES += ["av1.mp4", "mpeg4.mp4"]


@pytest.fixture(scope="module")
def decoder() -> MediaDecoder:
    made = MediaDecoder(CONFIG, VISION, GPU)
    made.decode([])
    if not made._backends:
        pytest.skip("DALI is not installed or does not load (glmv doctor says why)")
    return made


@pytest.fixture
def nvdec(decoder: MediaDecoder) -> Nvdec:
    assert decoder._backends
    found = decoder._backends[0].nvdec
    assert found is not None
    if found.reason:
        pytest.skip(f"NVDEC is out of reach: {found.reason}")
    return found


def test_the_driver_lists_what_every_card_has(nvdec: Nvdec) -> None:
    assert {"h264", "hevc"} <= set(nvdec.codecs) <= set(CODECS)
    for limits in nvdec.codecs.values():
        assert max(limits.least) <= 240 and min(limits.most) >= 1080 and limits.blocks >= 8100


@pytest.mark.parametrize("size", [SIZE, CROPPED])
@pytest.mark.parametrize("name", NAMES)
def test_frames_are_those_of_the_cpu(decoder: MediaDecoder, nvdec: Nvdec, name: str, size: tuple[int, int]) -> None:
    taken, facts, data = media(name, size)
    assert facts.mode in PIXELS
    if reason := nvdec.refuses(facts.format, facts.mode, facts.width, facts.height):
        pytest.skip(reason)
    largest, mean, numbers, expected = differences(decoder, taken, facts, data)
    assert numbers == expected
    assert largest <= 2 and mean <= 0.25
    found, numbers = decode_all(decoder, taken, facts, data)
    assert found == "dali_gpu"
    assert numbers == decode_all(MediaDecoder(CONFIG, VISION), taken, facts, data)[1], "the sampler's"


@pytest.mark.parametrize(("name", "by"), [("mjpeg.avi", "dali"), ("vp9_444.webm", "dali"), ("h264.ts", "pyav")])
def test_what_the_engine_does_not_take_is_decoded_on_the_cpu(decoder: MediaDecoder, name: str, by: str) -> None:
    assert decode_all(decoder, *media(name, SIZE))[0] == by


def test_a_codec_that_the_driver_does_not_list_is_decoded_on_the_cpu(decoder: MediaDecoder, nvdec: Nvdec) -> None:
    for name in NAMES:
        taken, facts, data = media(name, SIZE)
        on_cpu = "dali" if facts.format in ("vp8", "vp9") else "pyav"
        expected = "dali_gpu" if facts.format in nvdec.codecs else on_cpu
        assert decode_all(decoder, taken, facts, data)[0] == expected
    assert decode_all(decoder, *media("h264.mp4", (46, 112)))[0] == "pyav", "smaller than any engine takes"


@pytest.mark.parametrize("name", ["h264.mp4", "hevc_open.mp4", "vp9.webm"])
def test_a_clip_that_lost_its_frames_is_set_aside_and_no_others_are_shown(decoder: MediaDecoder, name: str) -> None:
    refuses_vanished_frames(decoder, media("h264_vfr.mp4", SIZE), media(name, SIZE))


@pytest.mark.parametrize("kind", jpegs())
def test_jpegs_are_pillows_within_their_tolerance(decoder: MediaDecoder, kind: str) -> None:
    largest, mean = image_difference(decoder, jpegs()[kind])
    assert mean <= 1 and largest <= 16


def test_images_say_who_decoded_them(decoder: MediaDecoder) -> None:
    small = photograph(480, 320)
    for data, by in {
        encoded(small, "JPEG"): "dali_gpu",
        encoded(small, "PNG"): "dali",
        encoded(small.convert("CMYK"), "JPEG"): "dali",
        encoded(small, "GIF"): "pillow",
    }.items():
        facts = probe(IMAGE, "0", data)
        (done,) = decoder.decode([(plan(facts, CONFIG, VISION), facts, data)])
        assert done.decoder == by and done.patches is not None and done.patches.device == GPU


def test_the_resize_is_the_cpus_within_its_tolerance() -> None:
    for picture, size in ((photograph(), (448, 784)), (photograph(), (1092, 1932)), (page(), (756, 616))):
        largest, mean = resize_difference(GPU, picture, *size)
        assert mean <= 0.25 and largest <= 20


def used() -> int:
    torch.cuda.synchronize(GPU)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(GPU)
    return total - free


@pytest.mark.parametrize("size", [SIZE, CROPPED])
def test_memory_stays_flat_over_300_clips(decoder: MediaDecoder, nvdec: Nvdec, size: tuple[int, int]) -> None:
    """After 120 clips of a kind: DALI keeps up to 100 idle decoders, and makes a new one for each clip whose height is
    no multiple of 16."""
    items = [item for name in ("h264.mp4", "hevc_open.mp4") if (item := media(name, size))[1].format in nvdec.codecs]
    assert growth(decoder, items, used, warm=120, rounds=150) < 64 << 20
