"""`glmv data synth`: options as text to a plan, and a line about what was made."""

from __future__ import annotations

import time
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.synthetic.domains.corpus import Plan, write
from megatron_glmv.data.synthetic.domains.form import Recipe
from megatron_glmv.data.synthetic.domains.registry import DOMAINS
from megatron_glmv.data.synthetic.seeds import EVAL, TRAIN, VAL

SPLITS = {"train": TRAIN, "val": VAL, "heldout": EVAL}


def synthesise(
    out: Path,
    *,
    samples: int,
    domains: str,
    tiers: str,
    split: str,
    form: str,
    thinking: str,
    seed: int,
    scale: int,
    part: int,
    shards: bool | None,
    vocab: int,
    workers: int,
) -> None:
    """Raises DataError on an option that has no meaning, and what `corpus.write` raises."""
    if split not in SPLITS:
        raise DataError(f"--split {split}", f"is not one of {', '.join(SPLITS)}")
    names = tuple(DOMAINS) if domains == "all" else tuple(domains.replace(" ", "").split(","))
    try:
        recipe = Recipe(SPLITS[split], form, thinking, seed, scale)
        levels = tuple(int(tier) for tier in tiers.split(","))
        if seed < 0 or scale < 1:
            raise ValueError(f"seed {seed} must not be negative, scale {scale} at least 1")
    except ValueError as error:
        raise DataError("data synth", str(error)) from error
    began = time.monotonic()
    made = write(Plan(recipe, samples, names, levels, part), out, workers=workers, shards=shards, vocab=vocab)
    listed = ", ".join(f"{count} {name}" for name, count in sorted(made.samples.items()))
    print(f"{out}: {listed}; {made.parts} parts made, {made.found} found, in {time.monotonic() - began:.1f} s")
