"""Any local CLIP-like model behind one call: pictures and texts in, their agreement out.

The only file here that knows transformers, which the extra `prepare` brings; nothing of the training path imports it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from megatron_glmv.config.errors import ConfigError

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model", "chinese_clip": "ChineseCLIPModel"}
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
            import transformers
        except ImportError as e:
            raise ConfigError("clip.model", str(directory), "needs transformers", "pip install '.[prepare]'") from e
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            loaded = getattr(transformers, name).from_pretrained(directory, use_safetensors=True, **options)
            processors: Any = transformers.AutoProcessor
            self._processor = processors.from_pretrained(directory, **options)
        except (OSError, ValueError, ImportError, AttributeError) as e:
            raise ConfigError("clip.model", str(directory), f"does not load: {str(e).splitlines()[0]}") from e
        self._torch = torch
        self._device = torch.device(device)
        self._model = loaded.eval().to(self._device)
        self._padding = "max_length" if name.startswith("Siglip") else True  # SigLIP was trained with full padding

    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        inputs = self._processor(
            text=list(texts), images=list(pictures), padding=self._padding, truncation=True, return_tensors="pt"
        )
        with self._torch.inference_mode():
            out = self._model(**{name: value.to(self._device) for name, value in inputs.items()})
        image, words = out.image_embeds.float(), out.text_embeds.float()
        cosine = self._torch.nn.functional.cosine_similarity(image, words)
        return [float(value) for value in cosine.cpu()]


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
