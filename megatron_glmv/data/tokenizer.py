"""Byte-level BPE with GLM's special tokens, from a directory in the Hugging Face layout; none of its code runs.

A real GLM directory and the small one that `train_tokenizer` makes are read the same way: `tokenizer.json` holds
everything that decides token ids, and `fingerprint` is taken over it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from megatron_glmv.data.errors import DataError

PAD = "<|endoftext|>"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

SPECIAL_TOKENS = (
    PAD,
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|begin_of_transcription|>",
    "<|end_of_transcription|>",
    "<|code_prefix|>",
    "<|code_middle|>",
    "<|code_suffix|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
    "<|begin_of_box|>",
    "<|end_of_box|>",
    "<|image|>",
    "<|video|>",
    "<answer>",
    "</answer>",
)
"""GLM-4.5V's list in its order, then the two that only GLM-4.1V has. A real tokenizer has one model's share of them."""

REQUIRED = (
    *(PAD, "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<think>", "</think>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>"),
)
"""What both chat templates write; a directory without one of them cannot be used."""

# Words with the blank or sign before them, digits one by one (so that numbers in answers, boxes and times share ten
# tokens), punctuation, line ends, blanks.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenizer:
    """Text to ids and back. Special tokens come from `special()` only, never from what a text says."""

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        try:
            raw = path.read_bytes()
            spec: dict[str, Any] = json.loads(raw)
            self._full = tokenizers.Tokenizer.from_str(raw.decode())
            self._plain = tokenizers.Tokenizer.from_str(json.dumps(_without_added_tokens(spec)))
        except FileNotFoundError:
            raise DataError(path, "is missing; set data.tokenizer to a tokenizer directory") from None
        except Exception as error:  # the library raises bare Exception for a file it cannot read
            raise DataError(path, f"not a tokenizer that the `tokenizers` library reads: {error}") from error
        vocab = self._full.get_vocab(with_added_tokens=True)
        self.directory = directory
        self.special_ids: dict[str, int] = {name: vocab[name] for name in SPECIAL_TOKENS if name in vocab}
        """Id of each GLM special token the directory has, by name."""
        missing = [name for name in REQUIRED if name not in self.special_ids]
        if missing:
            raise DataError(path, f"GLM's special tokens {', '.join(missing)} are missing")
        self.vocab_size = max(vocab.values()) + 1
        """Highest id plus one: the least number of rows an embedding needs."""
        self.pad = self.special_ids[PAD]
        names = json.dumps(sorted(self.special_ids.items())).encode()
        self.fingerprint = hashlib.sha256(raw + b"\0" + names).hexdigest()
        """sha256 of tokenizer.json and the special ids: equal fingerprints give equal ids for every text."""

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Raises DataError where tokenizer.json is missing, unreadable, or lacks a token that the templates write."""
        return cls(Path(directory))

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: `<|user|>` typed by a user becomes letters, not a turn."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def parse(self, text: str) -> list[int]:
        """Ids of a rendered conversation: special tokens wherever it spells them. Never for a user's text."""
        ids: list[int] = self._full.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        text: str = self._full.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def special(self, name: str) -> int:
        """Id of a special token. Raises DataError where this tokenizer has none of that name."""
        try:
            return self.special_ids[name]
        except KeyError:
            raise DataError(self.directory, f"the tokenizer has no special token {name}") from None

    def has(self, name: str) -> bool:
        return name in self.special_ids

    def save(self, directory: str | Path) -> None:
        """Copy the directory's tokenizer files, so that a run or checkpoint carries what its ids mean."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with suppress(FileNotFoundError):
                (target / name).write_bytes((self.directory / name).read_bytes())


def _without_added_tokens(spec: dict[str, Any]) -> dict[str, Any]:
    """The same BPE knowing no added token, for text that must stay text whatever it spells."""
    added = {token["content"] for token in spec.get("added_tokens", [])}
    model = spec["model"]
    vocab = {token: index for token, index in model["vocab"].items() if token not in added}
    return {**spec, "added_tokens": [], "post_processor": None, "model": {**model, "vocab": vocab}}


def train_tokenizer(texts: Iterable[str], out: str | Path, vocab_size: int) -> None:
    """Write a tokenizer directory trained on `texts`: equal texts and size give equal bytes, in any process.

    `vocab_size` counts the special tokens and is not reached where the texts have fewer words. The 256 bytes come
    first, so every text can be encoded. Raises ValueError below 256 + the special tokens.
    """
    learned = vocab_size - len(SPECIAL_TOKENS)
    if learned < 256:
        raise ValueError(f"vocab_size must be at least {256 + len(SPECIAL_TOKENS)} (bytes and special tokens)")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=learned, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])

    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    bpe.save(str(directory / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": PAD,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": list(SPECIAL_TOKENS[1:]),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
