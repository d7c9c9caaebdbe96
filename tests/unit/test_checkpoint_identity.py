"""A checkpoint of another model or tokenizer is refused by name; what only training uses may change."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
from helpers import tiny
from unit.checkpoint_files import manifest

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.identity import STARTING_POINT, TRAINING_ONLY, Identity, check_identity

MODEL = dataclasses.asdict(tiny.MODEL)
SAVED = manifest(5, {}, model=json.loads(json.dumps(MODEL)))


def identity(change: str | None = None, value: Any = None, tokenizer: str = "tok") -> Identity:
    model = copy.deepcopy(MODEL)
    if change:
        *path, last = change.split(".")
        node = model
        for name in path:
            node = node[name]
        assert last in node, f"no such field: {change}"
        node[last] = value
    return Identity(model=model, tokenizer_fingerprint=tokenizer, config_fingerprint="another run")


def test_the_same_model_is_accepted() -> None:
    check_identity(SAVED, identity(), "here")


@pytest.mark.parametrize(
    "field, value", [("text.layers", 6), ("vision.patch", 14), ("text.moe.topk", 1), ("text.rotary_interleaved", True)]
)
def test_a_mismatch_names_the_field_and_both_values(field: str, value: Any) -> None:
    node: Any = MODEL
    for name in field.split("."):
        node = node[name]
    for ignore in (TRAINING_ONLY, STARTING_POINT):
        with pytest.raises(MismatchError) as caught:
            check_identity(SAVED, identity(field, value), "runs/a/step_5", ignore)
        assert caught.value.exit_code == 64
        for part in ("runs/a/step_5", f"model.{field}", json.dumps(node), json.dumps(value)):
            assert part in str(caught.value)
        assert str(caught.value).count("in this run") == 1, "only what differs is named"


def test_a_dense_model_does_not_take_a_sparse_ones_weights() -> None:
    with pytest.raises(MismatchError, match=r"model\.text\.moe is .* null in this run"):
        check_identity(SAVED, identity("text.moe", None), "here")


@pytest.mark.parametrize("field, value", [("name", "x"), ("text.moe.bias_rate", 0.0), ("text.moe.aux_loss", 0.5)])
def test_what_only_training_uses_may_change(field: str, value: Any) -> None:
    check_identity(SAVED, identity(field, value), "here")


def test_another_rotary_base_is_a_new_start_not_a_resumption() -> None:
    check_identity(SAVED, identity("text.rope_theta", 1e6), "here", STARTING_POINT)
    with pytest.raises(MismatchError, match=r"rope_theta is 10000\.0 .* 1000000\.0"):
        check_identity(SAVED, identity("text.rope_theta", 1e6), "here")


def test_another_tokenizer_is_refused_with_both_fingerprints() -> None:
    with pytest.raises(MismatchError, match="tok in the checkpoint, other in this run"):
        check_identity(SAVED, identity(tokenizer="other"), "here")


def test_ignored_fields_exist() -> None:
    """A renamed option would silently stop being ignored."""
    for field in TRAINING_ONLY | STARTING_POINT:
        identity(field, None)
