"""Media files of a conversation: looked at when a prompt is laid out, decoded when it is its turn.

Shapes: N patches, V values of a patch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.media import Item, MediaDecoder
from megatron_glmv.data.patches import plan
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import MediaPlan


@dataclass(frozen=True, eq=False)
class MediaFile:
    """An image or a video on disk, and how it will be seen."""

    key: str
    """Equal for equal bytes that are seen equally: encoded features are shared by it."""
    path: Path
    facts: MediaFacts
    plan: MediaPlan
    data: bytes | None = None
    """Its bytes where it lies in no file: what an environment has drawn."""


class MediaFiles:
    """Looks at files and decodes them under one set of data options, on `device` with `data.decode_on=gpu` and else on
    the CPU, where the patches lie in any case. A file must not change while this lives."""

    def __init__(self, data: DataConfig, vision: VisionConfig, device: torch.device) -> None:
        self.data, self.vision = data, vision
        self._decoder = MediaDecoder(data, vision, device if data.decode_on == "gpu" else "cpu")
        self._known: dict[tuple[str, Path], MediaFile] = {}

    def look(self, kind: str, path: Path) -> MediaFile:
        """What the file's header says, once for each file. Raises SampleError (with the path as key)."""
        if (kind, path) not in self._known:
            self._known[kind, path] = self._look(kind, path)
        return self._known[kind, path]

    def hold(self, kind: str, data: bytes) -> MediaFile:
        """The same for bytes in memory; they live as long as what is returned. Raises SampleError."""
        return self._seen(kind, Path(f"<{kind}>"), data, data)

    def decode(self, files: Sequence[MediaFile]) -> list[torch.Tensor | SampleError]:
        """uint8 [N, V] of each file, or why it has none; all in one call of the decoder."""
        made: list[torch.Tensor | SampleError | None] = []
        items: list[Item] = []
        for file in files:
            try:
                items.append((file.plan, file.facts, self._read(file.path) if file.data is None else file.data))
                made.append(None)
            except SampleError as error:
                made.append(error)
        decoded = iter(zip(items, self._decoder.decode(items), strict=True) if items else ())
        for place, known in enumerate(made):
            if known is None:
                item, result = next(decoded)
                failed = SampleError(item[1].member, result.error)
                made[place] = failed if result.patches is None else result.patches.cpu()
        return [one for one in made if one is not None]

    def _look(self, kind: str, path: Path) -> MediaFile:
        return self._seen(kind, path, self._read(path), None)

    def _seen(self, kind: str, path: Path, data: bytes, held: bytes | None) -> MediaFile:
        facts = probe(kind, str(path), data)
        seen = plan(facts, self.data, self.vision)
        about = f"{hashlib.sha256(data).hexdigest()} {kind} {seen.height} {seen.width} {seen.frames}"
        return MediaFile(about, path, facts, seen, held)

    def _read(self, path: Path) -> bytes:
        try:
            size = path.stat().st_size
            if size > self.data.max_media_bytes:
                raise SampleError(str(path), f"{size} bytes, data.max_media_bytes is {self.data.max_media_bytes}")
            return path.read_bytes()
        except OSError as error:
            raise SampleError(str(path), error.strerror or str(error)) from error
