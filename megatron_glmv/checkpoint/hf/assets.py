"""What belongs to a checkpoint besides weights: tokenizer, processor, chat template, generation config."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.hf.safetensors import inside, read_json
from megatron_glmv.checkpoint.reader import resolve
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.tokenizer import FILES, Tokenizer

Json = dict[str, Any]
CARRIED = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "chat_template.json", "added_tokens.json", "vocab.json", "merges.txt", "LICENSE"),
)
"""Data all of them; Python files that some directories have are left behind."""
MAX_BYTES = 64 << 20
"""The largest, GLM's tokenizer.json, has 20 MB."""
NO_TOKENIZER = "none"
"""Stands for the fingerprint in a checkpoint that came without a tokenizer."""


@dataclass(frozen=True)
class Words:
    """A tokenizer as files."""

    fingerprint: str
    files: dict[str, bytes]


def carried(directory: Path) -> dict[str, bytes]:
    """The files by name. Raises ReadError for one that is too large or leads out of the directory."""
    found = {}
    for name in CARRIED:
        if (directory / name).exists():
            path = inside(directory, name)
            if path.stat().st_size > MAX_BYTES:
                raise ReadError(f"{path} has {path.stat().st_size} bytes; at most {MAX_BYTES} are carried along")
            found[name] = path.read_bytes()
    return found


def tokenizer_of(directory: Path, without: bool) -> Words:
    """The tokenizer in a directory. `without`: none is wanted. Raises ConfigError with the way out."""
    if without:
        return Words(NO_TOKENIZER, {})
    try:
        fingerprint = Tokenizer.load(directory).fingerprint
    except DataError as error:
        raise ConfigError(
            "--tokenizer",
            directory,
            f"holds no tokenizer of GLM ({error})",
            "name its folder, or give --without-tokenizer for weights that are only scored",
        ) from None
    files = {name: inside(directory, name).read_bytes() for name in FILES if (directory / name).exists()}
    return Words(fingerprint, files)


@dataclass(frozen=True)
class Assets:
    """What an export carries along."""

    files: dict[str, bytes]
    config: Json | None
    """config.json as it once came."""
    tokens: Json
    """Ids of media tokens for a model that came without config.json."""
    origin: str
    """For the model card."""

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(self.origin.encode())
        for name, data in sorted(self.files.items()):
            digest.update(f"{name} {len(data)}\n".encode() + data)
        return digest.hexdigest()


def find_assets(given: Path | None, checkpoint: Path, fingerprint: str) -> Assets:
    """From `given`, or from what an import left: beside the checkpoint, or beside the one its run started from.

    `fingerprint`: the checkpoint's tokenizer; a directory with another is refused. Raises ConfigError, ReadError."""
    place = given or next((p / "hf" for p in _ancestry(checkpoint.parent.parent) if (p / "hf").is_dir()), None)
    files = carried(place) if place else {}
    config = None
    if "config.json" in files and place is not None:
        files.pop("config.json")
        config = read_json(place / "config.json")
    run = checkpoint.parent.parent / "tokenizer"
    places = [p for p in (place, run) if p is not None and (p / "tokenizer.json").is_file()]
    origin = "as they came with the imported weights" if place else "none came with the checkpoint"
    if fingerprint == NO_TOKENIZER:
        return Assets(files, config, {}, origin)
    for home in places:
        words = Tokenizer.load(home)
        if words.fingerprint == fingerprint:
            files |= {name: inside(home, name).read_bytes() for name in FILES if (home / name).exists()}
            return Assets(files, config, _media_tokens(words), origin)
    tried = ", ".join(str(home) for home in places) or "nowhere to look"
    raise ConfigError(
        "--assets", given, f"the tokenizer of {checkpoint} was not found ({tried})", "name a directory that has it"
    )


def _ancestry(run: Path) -> Iterator[Path]:
    """A run, the directory it started from (init_from), what that started from, ..."""
    for _ in range(16):
        yield run
        try:
            config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            start = config.get("init_from")
        except (OSError, yaml.YAMLError, AttributeError):
            return
        if not start:
            return
        run = resolve(Path(start)).parent.parent


def _media_tokens(words: Tokenizer) -> Json:
    names = {
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
    }
    return {field: words.special(name) for field, name in names.items() if words.has(name)}
