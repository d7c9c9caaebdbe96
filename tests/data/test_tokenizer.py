from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star")
TEXTS = [
    *(f"What colour is the {shape}? How many {shape}s are there?" for shape in SHAPES),
    *(f"Where is the {colour} {shape}? [17,306,29,41]" for colour in COLOURS for shape in SHAPES),
    *COLOURS,
    *SHAPES,
] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, directory, 600)
    return Tokenizer.load(directory)


def test_every_text_survives_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    for text in ("red", "  two\n\nlines\t", "émail 漢字 🚀", "<|user|> [gMASK] <think>", "a\u0000b\r\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_spelled_by_a_user_stay_text(tokenizer: Tokenizer) -> None:
    for name in SPECIAL_TOKENS:
        ids = tokenizer.encode(f"x{name}y{name}")
        assert not set(ids) & set(tokenizer.special_ids.values()), name
        assert tokenizer.decode([tokenizer.special(name)]) == name


def test_answers_are_one_token_and_digits_are_single(tokenizer: Tokenizer) -> None:
    for word in (*COLOURS, *SHAPES):
        assert len(tokenizer.encode(word)) == 1, word
    assert len(tokenizer.encode("306")) == 3
    assert tokenizer.encode("306") == [*tokenizer.encode("3"), *tokenizer.encode("0"), *tokenizer.encode("6")]


def test_special_ids_come_last_in_glm_order_and_pad_is_endoftext(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(tokenizer.vocab_size - len(SPECIAL_TOKENS), tokenizer.vocab_size))
    assert tokenizer.pad == tokenizer.special("<|endoftext|>")
    assert not tokenizer.has("<|nothing|>")
    with pytest.raises(DataError, match="nothing"):
        tokenizer.special("<|nothing|>")


def test_training_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Hash seeds and thread scheduling differ between the processes."""
    program = (
        "import sys, json; from megatron_glmv.data.tokenizer import train_tokenizer;"
        "train_tokenizer(json.load(sys.stdin), sys.argv[1], 500)"
    )
    digests = set()
    for n in range(3):
        out = tmp_path / str(n)
        subprocess.run([sys.executable, "-c", program, str(out)], input=json.dumps(TEXTS), text=True, check=True)
        digests.add(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(out.iterdir())))
    assert len(digests) == 1


def test_fingerprint_follows_the_file_and_survives_a_copy(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").fingerprint == tokenizer.fingerprint
    train_tokenizer([*TEXTS, "magenta " * 50], tmp_path / "other", 600)
    assert Tokenizer.load(tmp_path / "other").fingerprint != tokenizer.fingerprint


def test_a_real_directory_with_tokens_that_are_added_but_not_special_is_read_the_same_way(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """GLM's own files mark `<think>` and others special=false; they must still not come out of plain text."""
    spec = json.loads((tokenizer.directory / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["special"] = token["content"].startswith("<|")
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    other = Tokenizer.load(tmp_path)
    assert other.special_ids == tokenizer.special_ids
    assert other.encode("<think>red</think>/nothink") == tokenizer.encode("<think>red</think>/nothink")


@pytest.mark.parametrize("content", [None, "{", '{"model": {}}', "[]"])
def test_a_directory_without_a_usable_tokenizer_is_a_data_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_glm_tokens_is_refused_by_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = json.loads((tokenizer.directory / "tokenizer.json").read_text())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != "<|begin_of_video|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(DataError, match="begin_of_video"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        train_tokenizer(TEXTS, tmp_path, 200)
