"""Our path against transformers' Glm4v processors, on the same media.

Equal, not close: grids, placeholder counts, input ids, timestamps, sampled frames, and the float32 patches where both
sides get the same decoded frames (decoders differ by more than any resize: transformers' use another matrix and chroma
siting). Derivation of the pixels: transformers resizes uint8 with antialiased bicubic, rescales and normalises in one
step (x - 255 mean) / (255 std), then cuts; we cut uint8 and normalise last: the same operations on the same numbers, in
another order, so every bit agrees. Not covered: CUDA's resize, which goes through float32 on both sides.
"""

from __future__ import annotations

import io
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.media_files import VISION, clip, encoded, pyav_frames
from data.natural import film_as_vp9, photograph
from data.small_set import ask
from PIL import Image

from megatron_glmv.config.schema import DataConfig
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.media import MediaDecoder
from megatron_glmv.data.patches import normalise, plan, sample_frames, smart_resize
from megatron_glmv.data.probe import probe
from megatron_glmv.data.sample import lay_out, lay_out_prompt
from megatron_glmv.data.tokenizer import Tokenizer, train_tokenizer
from megatron_glmv.data.types import IMAGE, VIDEO, Json, MediaPlan

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is missing: make setup")

DATA = DataConfig()
FILM = {"size": {"shortest_edge": DATA.video_min_pixels, "longest_edge": DATA.video_max_pixels}}
STILL = {"size": {"shortest_edge": DATA.image_min_pixels, "longest_edge": DATA.image_max_pixels}}
TEMPLATE = """[gMASK]<sop>
{%- for m in messages -%}
<|{{ m.role }}|>{{ "\\n" }}
{%- if m.role == "assistant" -%}{{ "<think></think>\\n" }}{%- endif -%}
{%- if m.content is string -%}{{ m.content }}
{%- else -%}
{%- for c in m.content -%}
{%- if c.type == "image" -%}<|begin_of_image|><|image|><|end_of_image|>
{%- elif c.type == "video" -%}<|begin_of_video|><|video|><|end_of_video|>
{%- else -%}{{ c.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if m.role == "user" -%}/nothink{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|assistant|>\\n<think></think>\\n" }}{%- endif -%}
"""
"""GLM-4.5V's form without thinking, as its lineage's published templates write it."""


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The modules of the processors; torchvision's CUDA wheel needs two operators declared on a CPU."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers.models.glm4v import image_processing_glm4v, processing_glm4v, video_processing_glm4v

    yield {"image": image_processing_glm4v, "video": video_processing_glm4v, "both": processing_glm4v}
    del library


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["What is this? a rocket. How many bikes go past? two and one"] * 9, directory, 360)
    return Tokenizer.load(directory)


def metadata(facts: MediaFacts) -> Any:
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(total_num_frames=facts.frames, fps=facts.fps, duration=facts.duration)


def test_sizes_agree_on_thousands_of_shapes(theirs: Any) -> None:
    random = np.random.default_rng(0)
    shapes = np.exp(random.uniform(np.log(8), np.log(6000), (3000, 2))).astype(int).tolist()
    for height, width in [*shapes, (97, 1303), (1801, 61), (640, 640), (30, 31), (1080, 1349), (42, 70), (14, 14)]:
        for frames, least, most in ((2, 12544, 9633792), (16, 12544, 47040000), (601, 12544, 200_000)):
            outcome = []
            for function, names in (
                (theirs["image"].smart_resize, {"temporal_factor": 2, "min_pixels": least, "max_pixels": most}),
                (smart_resize, {"temporal": 2, "min_pixels": least, "max_pixels": most}),
            ):
                try:
                    outcome.append(function(frames, height, width, factor=28, **names))
                except ValueError:
                    outcome.append("refused")
            assert outcome[0] == outcome[1], (frames, height, width)


@pytest.mark.parametrize("seed", range(4))
def test_the_sampler_takes_the_same_frames_at_the_same_times(theirs: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    sampler = theirs["video"].Glm4vVideoProcessor()
    cases = [(300, 30.0), (103, 24.0), (186, 60.0), (194, 25.0), (5, 1.0), (1, 30.0), (9000, 30.0), (9001, 30.0)]
    cases += [
        (int(random.integers(1, 40_000)), float(random.choice([1, 10, 15, 23.976, 24, 25, 29.97, 30, 50, 60, 120])))
        for _ in range(150)
    ]
    for frames, fps in cases:
        facts = MediaFacts(kind=VIDEO, member="v", frames=frames, fps=fps, duration=frames / fps)
        indices, seconds = sample_frames(facts, DATA.video_fps, DATA.video_max_frames)
        about = metadata(facts)
        about.frames_indices = sampler.sample_frames(about)
        assert list(indices) == about.frames_indices.tolist(), (frames, fps)
        assert [int(t) for t in seconds[::2]] == [int(t) for t in about.timestamps[::2]], (frames, fps)


def still(kind: str) -> tuple[bytes, Image.Image]:
    data = photograph()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if kind == "small":
        image = image.crop((100, 100, 130, 131))
    elif kind == "large":
        image = image.resize((1920, 1080))
    elif kind == "long":
        image = image.resize((1303, 97))
    return (data if kind == "photograph" else encoded(image, "PNG")), image


@pytest.mark.parametrize("kind", ["photograph", "small", "large", "long"])
def test_images_become_the_same_patches(theirs: Any, kind: str) -> None:
    data, image = still(kind)
    facts = probe(IMAGE, "0", data)
    taken = plan(facts, DATA, VISION)
    done = MediaDecoder(DATA, VISION).decode([(taken, facts, data)])[0]
    reference = theirs["image"].Glm4vImageProcessor(**STILL)(images=[image], return_tensors="pt")
    assert reference["image_grid_thw"].tolist() == [[taken.grid.t, taken.grid.h, taken.grid.w]]
    assert done.patches is not None
    assert torch.equal(normalise(done.patches, VISION), reference["pixel_values"])


def clips(kind: str) -> bytes:
    if kind == "natural":
        return film_as_vp9()
    options = {"odd": {"frames": 63, "size": (90, 150)}, "single": {"frames": 1}}[kind]
    return clip("webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["natural", "odd", "single"])
def test_videos_become_the_same_patches(theirs: Any, kind: str) -> None:
    data = clips(kind)
    facts = probe(VIDEO, "v", data)
    taken = plan(facts, DATA, VISION)
    done = MediaDecoder(DATA, VISION).decode([(taken, facts, data)])[0]
    frames = torch.from_numpy(np.stack(pyav_frames(data))).permute(0, 3, 1, 2)
    processor = theirs["video"].Glm4vVideoProcessor(**FILM)
    reference = processor(videos=[frames], video_metadata=[metadata(facts)], return_tensors="pt", return_metadata=True)
    assert reference["video_grid_thw"].tolist() == [[taken.grid.t, taken.grid.h, taken.grid.w]]
    assert reference["video_metadata"][0].frames_indices.tolist() == list(taken.frames)
    assert done.patches is not None
    assert torch.equal(normalise(done.patches, VISION), reference["pixel_values_videos"])


@pytest.mark.parametrize("prompt", [True, False])
def test_a_conversation_with_image_and_video_becomes_the_same_ids(
    theirs: Any, tokenizer: Tokenizer, prompt: bool, tmp_path: Path
) -> None:
    """Template, placeholders, markup and written-out seconds, through apply_chat_template and the whole processor."""
    from transformers import PreTrainedTokenizerFast

    (picture, image), film = still("photograph"), film_as_vp9()
    seen = {IMAGE: probe(IMAGE, "0", picture), VIDEO: probe(VIDEO, "1", film)}
    plans: list[MediaPlan] = [plan(facts, DATA, VISION) for facts in seen.values()]
    messages: list[Json] = ask("image", "0", [("How many bikes go past?", "two"), ("What is this?", "a rocket.")])[
        "messages"
    ]
    messages[0]["content"].insert(1, {"type": "video", "video": "1"})
    messages = messages[:3] if prompt else messages
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer.directory / "tokenizer.json"), pad_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    processor = theirs["both"].Glm4vProcessor(
        image_processor=theirs["image"].Glm4vImageProcessor(**STILL),
        tokenizer=fast,
        video_processor=theirs["video"].Glm4vVideoProcessor(**FILM),
        chat_template=TEMPLATE,
    )
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    frames = torch.from_numpy(np.stack(pyav_frames(film))).permute(0, 3, 1, 2)
    reference = processor(
        text=[text], images=[image], videos=[frames], video_metadata=[metadata(seen[VIDEO])], return_tensors="pt"
    )
    conversation = {"id": "x", "messages": messages}
    ours = (lay_out_prompt if prompt else lay_out)(conversation, plans, tokenizer, "glm45v")
    assert reference["input_ids"][0].tolist() == ours.input_ids.tolist()
    visual = reference["mm_token_type_ids"][0].numpy() > 0
    assert np.flatnonzero(visual).tolist() == ours.visual_positions.tolist()
    assert visual.sum() == sum(p.grid.tokens() for p in plans)
    assert math.prod(reference["image_grid_thw"][0].tolist()) == plans[0].grid.patches
