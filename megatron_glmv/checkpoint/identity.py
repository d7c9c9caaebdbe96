"""Which model and tokenizer a checkpoint belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.manifest import Json, Manifest

TRAINING_ONLY = frozenset(
    {"name", "text.init_std", "text.max_position", "text.moe.bias_rate", "text.moe.aux_loss", "mtp.loss_weight"}
)
"""Fields of the model's config that do not change what its weights mean; a run may resume with others."""
STARTING_POINT = TRAINING_ONLY | {"text.rope_theta", "mtp.layers"}
"""What may differ as well when only weights are taken: long-context stages start from another rotary base, and a
prediction layer may be left behind."""
LATER: dict[str, Any] = {"mtp": {"layers": 0}}
"""Groups of the model's config that older checkpoints do not have, and what they are."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is: JSON of its model config, fingerprints of its tokenizer and of its whole config."""

    model: Json
    tokenizer_fingerprint: str
    config_fingerprint: str


def check_identity(manifest: Manifest, identity: Identity, where: str, ignore: frozenset[str] = TRAINING_ONLY) -> None:
    """Raises MismatchError that names each field of the model and both values, or both tokenizer fingerprints."""
    ours = json.loads(json.dumps(identity.model))  # tuples become lists, as in the manifest
    wrong = [
        f"model.{field} is {_show(theirs)} in the checkpoint, {_show(mine)} in this run"
        for field, theirs, mine in _differences("", manifest.model, ours)
        if field not in ignore
    ]
    if manifest.tokenizer_fingerprint != identity.tokenizer_fingerprint:
        wrong.append(
            f"the tokenizer's fingerprint is {manifest.tokenizer_fingerprint} in the checkpoint, "
            f"{identity.tokenizer_fingerprint} in this run"
        )
    if wrong:
        raise MismatchError(f"{where} belongs to another model: {'; '.join(wrong)}")


def model_differences(a: Json, b: Json, ignore: frozenset[str] = TRAINING_ONLY) -> list[str]:
    """Fields in which two model configs (as JSON) differ, with both values."""
    found = _differences("", json.loads(json.dumps(a)), json.loads(json.dumps(b)))
    return [f"model.{field} is {_show(x)} and {_show(y)}" for field, x, y in found if field not in ignore]


_ABSENT = object()


def _differences(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            absent = _ABSENT if path else LATER.get(key, _ABSENT)
            yield from _differences(f"{path}.{key}".lstrip("."), theirs.get(key, absent), ours.get(key, absent))
    elif theirs != ours:
        yield path, theirs, ours


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)
