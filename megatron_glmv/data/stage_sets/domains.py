"""The paper's domains as tiny models can learn them in minutes: one sort of sample of each, of the lowest tier.

EASY names the kinds of scenes that are used. Left out is what needs more looks than the tiny stages have: digits to be
read (sums of drawn numbers, forces, numbers on pages) are at chance after 40,000 samples (`physics` is nothing else, so
it is not among them); who is older of two names was at chance after 850 steps of SFT, and its thoughts did not end.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from megatron_glmv.data.synthetic.domains import form
from megatron_glmv.data.synthetic.domains.corpus import LINES, MEDIA, beside
from megatron_glmv.data.synthetic.domains.problem import Domain
from megatron_glmv.data.synthetic.domains.registry import DOMAINS
from megatron_glmv.data.synthetic.seeds import EVAL
from megatron_glmv.data.types import Json

EASY: dict[str, tuple[str, ...]] = {
    "math": ("squares",),
    "chart": ("bars",),
    "ocr": ("sign",),
    "counting": ("objects",),
    "spatial": ("relation",),
    "grounding": ("objects",),
    "gui_action": ("colours",),
    "html": ("blocks",),
    "document": ("shapes",),
    "video": ("motion", "flashes", "order"),
    "text": ("list", "sum"),
}
PREFIX = "easy-"
"""Of the kinds of samples, beside the demo's families: easy-math."""
TIER = 0
HELD_OUT = 100
"""Questions of each domain."""


def easy(name: str) -> Domain:
    """The domain with its easy kinds alone. Raises KeyError for a name that is not in EASY."""
    return replace(DOMAINS[name], kinds=tuple(kind for kind in DOMAINS[name].kinds if kind.name in EASY[name]))


def make(kind: str, shape: str, seed: int, split: str, index: int) -> tuple[str, Json, dict[str, bytes]]:
    """(key, conversation, media) of sample `index` of `kind` (easy-NAME) in the form `shape`, one of form.FORMS: the
    same bytes in any process."""
    made = form.make(form.Recipe(split, shape, seed=seed, every=True), easy(kind.removeprefix(PREFIX)), TIER, index)
    return made.key, made.conversation, made.media


def write_questions(out: Path, each: int = HELD_OUT, seed: int = 0) -> int:
    """Writes OUT/questions.jsonl and its media: `each` of every domain, of templates that no training sample has.

    Returns the number of questions. What an earlier call left is replaced, unless it is the same.
    """
    manifest, wanted = out / "held.json", {"each": each, "seed": seed, "kinds": EASY}
    described = json.dumps(wanted, indent=1) + "\n"
    if manifest.is_file() and manifest.read_text(encoding="utf-8") == described:
        return each * len(EASY)
    shutil.rmtree(out, ignore_errors=True)
    (out / MEDIA).mkdir(parents=True)
    with (out / LINES).open("w", encoding="utf-8") as file:
        for name in EASY:
            for index in range(each):
                made = form.make(form.Recipe(EVAL, form.QUESTIONS, seed=seed), easy(name), TIER, index)
                for member, data in made.media.items():
                    (out / MEDIA / f"{made.key}.{member}").write_bytes(data)
                file.write(json.dumps(beside(made), ensure_ascii=False) + "\n")
    manifest.write_text(described, encoding="utf-8")
    return each * len(EASY)
