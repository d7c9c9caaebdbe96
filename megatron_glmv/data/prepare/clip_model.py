"""Any local CLIP-like model behind one call: pictures and texts in, their agreement out.

The only file here that knows transformers, which the extra `prepare` brings; nothing of the training path imports it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megatron_glmv.config.errors import ConfigError

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""model_type of a config.json -> class of transformers."""


class Scorer(Protocol):
    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Cosine between the embeddings of each picture and its text."""


class LocalModel:
    """A directory with config.json, safetensors, tokenizer and preprocessor_config.json. Nothing in it is executed."""

    def __init__(self, directory: Path, device: str) -> None:
        """Raises ConfigError where it is no such directory or transformers is missing."""
        name = _class_name(directory)
        try:
            import torch

            with importable():
                import transformers

                kind = getattr(transformers, name)
        except ImportError as e:
            raise ConfigError("clip.model", str(directory), "needs transformers", "pip install '.[prepare]'") from e
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizers: Any = transformers.AutoTokenizer
        try:
            loaded = kind.from_pretrained(directory, use_safetensors=True, **options)
            self._tokenizer = tokenizers.from_pretrained(directory, **options)
        except (OSError, ValueError, ImportError, AttributeError) as e:
            raise ConfigError("clip.model", str(directory), f"does not load: {str(e).splitlines()[0]}") from e
        self._torch = torch
        self._device = torch.device(device)
        self._model = loaded.eval().to(self._device)
        self._frame = Frame.read(directory)
        # SigLIP was trained with texts padded to its full length
        self._padding = "max_length" if name.startswith("Siglip") else True
        self._length = int(loaded.config.text_config.max_position_embeddings)

    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        tokens = self._tokenizer(
            list(texts), padding=self._padding, truncation=True, max_length=self._length, return_tensors="pt"
        )
        pixels = self._torch.from_numpy(np.stack([self._frame.pixels(picture) for picture in pictures]))
        with self._torch.inference_mode():
            out = self._model(
                pixel_values=pixels.to(self._device), **{name: value.to(self._device) for name, value in tokens.items()}
            )
        image, words = out.image_embeds.float(), out.text_embeds.float()
        cosine = self._torch.nn.functional.cosine_similarity(image, words)
        return [float(value) for value in cosine.cpu()]


@dataclass(frozen=True)
class Frame:
    """What preprocessor_config.json says: how a picture is resized, cut and normalised. Done by Pillow, as the models'
    own slow processors do, so that torchvision is not needed."""

    shortest: int
    """Side that the shorter one is resized to; 0: the picture is resized to `size` without regard to its aspect."""
    size: tuple[int, int]
    """(height, width) of the input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    @classmethod
    def read(cls, directory: Path) -> Frame:
        """Raises ConfigError where the file is missing or says something else."""
        path = directory / "preprocessor_config.json"
        path = path if path.is_file() else directory / "processor_config.json"
        try:
            said = json.loads(path.read_bytes())
            said = said.get("image_processor", said)
            size = said["size"] if isinstance(said["size"], dict) else {"shortest_edge": said["size"]}
            shortest = int(size.get("shortest_edge", 0))
            cut = said.get("crop_size", size) if shortest else size
            cut = cut if isinstance(cut, dict) else {"height": cut, "width": cut}
            return cls(
                shortest,
                (int(cut["height"]), int(cut["width"])),
                tuple(map(float, said["image_mean"])),
                tuple(map(float, said["image_std"])),
                int(said.get("resample", Image.Resampling.BICUBIC)),
            )
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigError("clip.model", str(directory), f"{path.name} does not say size, mean and std: {e}") from e

    def pixels(self, picture: Image.Image) -> NDArray[np.float32]:
        """[3, height, width]"""
        height, width = self.size
        if self.shortest:
            scale = self.shortest / min(picture.size)
            resized = max(width, int(picture.width * scale)), max(height, int(picture.height * scale))
            left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
        else:
            resized, left, top = (width, height), 0, 0
        shown = picture.resize(resized, Image.Resampling(self.resample)).crop((left, top, left + width, top + height))
        values = np.asarray(shown, np.float32) / 255
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        return np.asarray((values - mean) / std, np.float32).transpose(2, 0, 1)


@contextmanager
def importable() -> Iterator[None]:
    """Inside, transformers' models can be imported: torchvision's CUDA wheel, where it is installed beside a CPU torch,
    lacks two operators and fails without them."""
    import torch

    library: Any = torch.library.Library
    if "torchvision" in sys.modules or not find_spec("torchvision") or torch.cuda.is_available():
        yield
        return
    operators = library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        yield
    finally:
        del operators


def _class_name(directory: Path) -> str:
    try:
        kind = json.loads((directory / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError("clip.model", str(directory), "holds no config.json with a model_type") from e
    if kind not in CLASSES:
        raise ConfigError("clip.model", str(directory), f"is a {kind!r}", f"there are: {', '.join(sorted(CLASSES))}")
    if not any(directory.glob("*.safetensors")):
        raise ConfigError("clip.model", str(directory), "holds no *.safetensors; pickled weights are not read")
    return CLASSES[kind]


def identity(directory: Path) -> list[list[object]]:
    """Names and sizes of its files, and the config itself."""
    if not directory.is_dir():
        raise ConfigError("clip.model", str(directory), "is not a directory")
    config = (directory / "config.json").read_text() if (directory / "config.json").is_file() else ""
    return [[path.name, path.stat().st_size] for path in sorted(directory.iterdir()) if path.is_file()] + [[config]]
