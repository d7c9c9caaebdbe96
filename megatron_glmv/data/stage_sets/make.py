"""The sets of the stages, beside a finished demo set and with its tokenizer. All hold the paper's domains (domains.py).

DIR/pretrain/{train,val} pictures and text: the paper has videos and long documents join in the next stage
DIR/long/{train,val}    the demo's families with other scenes, and long documents: conf/data/demo_long.yaml
DIR/sft/{train,val}     with and without thinking, answers in boxes: conf/data/demo_sft.yaml
DIR/{pretrain,long,sft}/set.json the parameters, and that everything is there (written last)
DIR/held/questions.jsonl held-out questions of each domain
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import build_index
from megatron_glmv.data.processes import process_pool
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.stage_sets import domains, pages, sft
from megatron_glmv.data.synthetic.conversation import make_sample
from megatron_glmv.data.synthetic.demo import SHARES
from megatron_glmv.data.synthetic.domains import form
from megatron_glmv.data.synthetic.registry import FAMILIES
from megatron_glmv.data.synthetic.seeds import TRAIN, VAL, stream
from megatron_glmv.data.tokenizer import FILES
from megatron_glmv.data.types import Json

PRETRAIN, LONG, SFT = "pretrain", "long", "sft"
STAGES = (PRETRAIN, LONG, SFT)
HELD = "held"
MANIFEST = "set.json"
OTHER_SEED = 1_000_003
"""Added to the seed for the scenes of a stage: no two sets share one."""
LATER = ("easy-document", "easy-video")
"""Domains that join in the long-context stage."""
_DOMAINS = {
    "easy-math": 4,
    "easy-chart": 3,
    "easy-ocr": 3,
    "easy-counting": 5,
    "easy-spatial": 4,
    "easy-grounding": 4,
    "easy-gui_action": 5,
    "easy-html": 3,
    "easy-document": 3,
    "easy-video": 4,
    "easy-text": 5,
}
WEIGHTS = {
    PRETRAIN: {"still": 12, "text": 2, **{kind: n for kind, n in _DOMAINS.items() if kind not in LATER}},
    LONG: {**SHARES, "still": 12, "text": 12, pages.DOCUMENT: 2, pages.PAGES: 2, **_DOMAINS},
    SFT: {"still": 6, "chart": 1, "clip": 2, "lights": 2, "cycle": 1, "text": 3, **_DOMAINS},
}
"""Samples of each kind relative to one another. A long document has as many tokens as twenty others, a text has fewest:
with a twelfth of the samples, its loss rose in the long-context stage while all others fell."""
VAL_DIVISOR = 20
CHUNK = 25
SAMPLES_PER_SHARD = 500

Made = tuple[str, Json, dict[str, bytes]]
Job = tuple[str, int]
"""(family or kind of long sample, index)."""


@dataclass(frozen=True)
class Recipe:
    """What a set is made of."""

    stage: str
    samples: int
    """To train on; one in VAL_DIVISOR as many more to validate on."""
    pack_tokens: int = 6144
    """Longest sample of the long set."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stage not in STAGES or self.samples < 1 or self.seed < 0:
            raise ValueError(f"{self} is no set: a stage of {', '.join(STAGES)}, samples from 1, a seed from 0")


def make_set(demo: Path, recipe: Recipe, workers: int = 2) -> Counter[str]:
    """Writes DEMO/<stage>, or finds it there with the same parameters; training samples by kind.

    Equal recipes give equal bytes whatever `workers` is (0: everything in this process). What an earlier call made of
    another recipe, or left half made, is removed first. Raises DataError where `demo` has no tokenizer.
    """
    tokenizer, out = demo / "tokenizer", demo / recipe.stage
    if not (tokenizer / FILES[0]).is_file():
        raise DataError(tokenizer, "has no tokenizer; make the demo set first: tools/make_demo_data.py")
    plan = {TRAIN: _plan(recipe, recipe.samples, TRAIN), VAL: _plan(recipe, -(-recipe.samples // VAL_DIVISOR), VAL)}
    counted = Counter(kind for kind, _ in plan[TRAIN])
    if _read(out / MANIFEST) == asdict(recipe):
        return counted
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copytree(tokenizer, out / "tokenizer")
    pool = process_pool(workers) if workers else None
    try:
        for split, jobs in plan.items():
            with ShardWriter(out / split, samples_per_shard=SAMPLES_PER_SHARD) as writer:
                for key, conversation, media in _make(pool, recipe, split, jobs):
                    writer.add(key, conversation, media)
            build_index(out / split, workers)
    finally:
        if pool is not None:
            pool.shutdown()
    (out / MANIFEST).write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
    return counted


def make_one(recipe: Recipe, split: str, job: Job) -> Made:
    """One sample: the same bytes in any process."""
    kind, index = job
    if kind.startswith(domains.PREFIX):
        # a stage's scenes are its own
        shape, own = form.SFT if recipe.stage == SFT else form.PRETRAIN, STAGES.index(recipe.stage) * OTHER_SEED
        return domains.make(kind, shape, recipe.seed + own, split, index)
    if recipe.stage == SFT:
        return sft.make(FAMILIES[kind], recipe.seed, split, index)
    if kind in FAMILIES:
        own = OTHER_SEED * (1 if recipe.stage == LONG else 2)
        sample = make_sample(FAMILIES[kind], recipe.seed + own, split, index)
        key = f"{recipe.stage}-{sample.key}"
        return key, {**sample.conversation(), "id": key}, sample.media
    return pages.make(kind, FAMILIES["still"], recipe.pack_tokens, recipe.seed, split, index)


def _plan(recipe: Recipe, samples: int, split: str) -> list[Job]:
    """The samples of a split in random order; every kind has at least one."""
    weights = WEIGHTS[recipe.stage]
    total = sum(weights.values())
    jobs = [(kind, i) for kind, weight in weights.items() for i in range(max(1, samples * weight // total))]
    order = stream(recipe.seed, split, f"{recipe.stage}-mixture", 0).permutation(len(jobs))
    return [jobs[i] for i in order]


def _make(pool: ProcessPoolExecutor | None, recipe: Recipe, split: str, jobs: list[Job]) -> Iterator[Made]:
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    make = partial(_make_chunk, recipe, split)
    made: Iterable[list[Made]] = pool.map(make, chunks) if pool else map(make, chunks)
    return track(chain.from_iterable(made), f"{recipe.stage} {split}", len(jobs))


def _make_chunk(recipe: Recipe, split: str, jobs: list[Job]) -> list[Made]:
    return [make_one(recipe, split, job) for job in jobs]


def _read(path: Path) -> Json | None:
    try:
        values: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values
