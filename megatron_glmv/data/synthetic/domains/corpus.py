"""Domains to files, in parts that several processes make and that a later call goes on from.

    shards   OUT/synth-000012-000000.tar, ...; index.json(l)
    jsonl    OUT/questions.jsonl, OUT/media/<key>.<n>.png
    both     OUT/synth.json: what the files are made of; OUT/../tokenizer where one is asked for

A part is there once it has its final name, and what it holds depends on the recipe and its number alone, so neither the
number of processes nor an interruption shows in the result.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import build_index
from megatron_glmv.data.processes import process_pool
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.synthetic.domains.form import QUESTIONS, Made, Recipe, make
from megatron_glmv.data.synthetic.domains.problem import TIERS
from megatron_glmv.data.synthetic.domains.registry import DOMAINS
from megatron_glmv.data.synthetic.seeds import stream
from megatron_glmv.data.tokenizer import train_tokenizer
from megatron_glmv.data.types import Json

MANIFEST, LINES, MEDIA = "synth.json", "questions.jsonl", "media"
PART = 500
"""Samples of a part."""
INDEX_PARTS = 16
"""With fewer the index is made sooner than processes start."""
TOKENIZER_SAMPLES = 4000
"""Samples whose text a tokenizer learns from."""

Job = tuple[str, int, int]
"""(domain, tier, index)."""


@dataclass(frozen=True)
class Plan:
    """A corpus: `samples` of the domains and tiers in equal shares, in a random order that the seed fixes."""

    recipe: Recipe
    samples: int
    domains: tuple[str, ...] = tuple(DOMAINS)
    tiers: tuple[int, ...] = TIERS
    part: int = PART

    def __post_init__(self) -> None:
        for name in self.domains:
            if name not in DOMAINS:
                raise DataError(f"domain {name}", f"does not exist; there are {', '.join(DOMAINS)}")
        for tier in self.tiers:
            if tier not in TIERS:
                raise DataError(f"tier {tier}", f"does not exist; there are {TIERS}")
        if self.samples < 1 or self.part < 1 or not self.domains or not self.tiers:
            raise DataError("data synth", "give at least one sample, one domain and one tier")

    def jobs(self) -> list[Job]:
        cells = [(domain, tier) for tier in self.tiers for domain in self.domains]
        jobs = [(*cells[i % len(cells)], i // len(cells)) for i in range(self.samples)]
        order = stream(self.recipe.seed, self.recipe.split, "corpus", 0).permutation(self.samples)
        return [jobs[i] for i in order]

    def parts(self) -> int:
        return -(-self.samples // self.part)

    def of(self, part: int) -> list[Job]:
        return self.jobs()[part * self.part : (part + 1) * self.part]


@dataclass(frozen=True)
class Written:
    """What a call did. `found`: parts of an earlier call that were kept."""

    samples: Counter[str]
    parts: int
    found: int


def write(plan: Plan, out: Path, *, workers: int = 2, shards: bool | None = None, vocab: int = 0) -> Written:
    """Make the corpus in `out`, or finish it. Equal plans give equal bytes, whatever `workers` is (0: this process).

    shards: tar shards and their index, else a JSONL file with its media; None makes JSONL of questions and shards of
    the other forms. vocab: also train a tokenizer of this size in `out`/../tokenizer. Raises DataError where `out`
    holds another corpus or other files, or an option names what is not there.
    """
    as_shards = plan.recipe.form != QUESTIONS if shards is None else shards
    _claim(out, _described(plan, as_shards))
    missing = [part for part in range(plan.parts()) if not _target(out, part, as_shards).exists()]
    job = partial(_write_part, plan, out, as_shards)
    if workers and len(missing) > 1:
        with process_pool(min(workers, len(missing))) as pool:
            done = list(track(pool.map(job, missing), "synth", len(missing)))
    else:
        done = list(track(map(job, missing), "synth", len(missing)))
    if as_shards:
        if missing or not (out / "index.json").exists():
            build_index(out, workers if plan.parts() >= INDEX_PARTS else 0)
    else:
        _join(out, plan.parts())
    if vocab:
        train_tokenizer(_texts(plan), out.parent / "tokenizer", vocab)
    return Written(Counter(domain for domain, _, _ in plan.jobs()), len(done), plan.parts() - len(done))


def _described(plan: Plan, as_shards: bool) -> Json:
    described: Json = json.loads(json.dumps({**asdict(plan), "shards": as_shards, "generator": source_hash()}))
    return described


def source_hash() -> str:
    """sha256 of this package's source: parts of two versions of a generator are not mixed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _claim(out: Path, described: Json) -> None:
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / MANIFEST
    if manifest.exists():
        if json.loads(manifest.read_text(encoding="utf-8")) != described:
            raise DataError(out, f"holds another corpus (see {MANIFEST}); name an empty directory or remove it")
        return
    if any(out.iterdir()):
        raise DataError(out, f"holds files but no {MANIFEST}; name an empty directory")
    unfinished = manifest.with_suffix(".partial")
    unfinished.write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    unfinished.rename(manifest)


def _prefix(part: int) -> str:
    return f"synth-{part:06d}"


def _target(out: Path, part: int, as_shards: bool) -> Path:
    """The last file of a part to appear. A joined file stands for all parts of a finished JSONL corpus."""
    if as_shards:
        return out / f"{_prefix(part)}-000000.tar"
    return out / LINES if (out / LINES).exists() else out / f"{_prefix(part)}.jsonl"


def _write_part(plan: Plan, out: Path, as_shards: bool, part: int) -> int:
    samples = [make(plan.recipe, DOMAINS[domain], tier, index) for domain, tier, index in plan.of(part)]
    if as_shards:
        with ShardWriter(out, samples_per_shard=len(samples), prefix=_prefix(part)) as writer:
            for sample in samples:
                writer.add(sample.key, sample.conversation, sample.media)
        return len(samples)
    (out / MEDIA).mkdir(exist_ok=True)
    lines = []
    for sample in samples:
        for name, data in sample.media.items():
            (out / MEDIA / f"{sample.key}.{name}").write_bytes(data)
        lines.append(json.dumps(beside(sample), ensure_ascii=False) + "\n")
    target = _target(out, part, as_shards)
    target.with_suffix(".partial").write_text("".join(lines), encoding="utf-8")
    target.with_suffix(".partial").rename(target)
    return len(samples)


def beside(sample: Made) -> Json:
    """The conversation with its media named relative to the file."""
    made: Json = json.loads(json.dumps(sample.conversation))
    for message in made["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] != "text":
                part[part["type"]] = f"{MEDIA}/{sample.key}.{part[part['type']]}"
    return made


def _join(out: Path, parts: int) -> None:
    if (out / LINES).exists():
        return
    files = [out / f"{_prefix(part)}.jsonl" for part in range(parts)]
    unfinished = out / (LINES + ".partial")
    with unfinished.open("wb") as joined:
        for file in files:
            joined.write(file.read_bytes())
    unfinished.rename(out / LINES)
    for file in files:
        file.unlink()


def _texts(plan: Plan) -> Iterable[str]:
    jobs: Sequence[Job] = list(islice(plan.jobs(), TOKENIZER_SAMPLES))
    return chain.from_iterable(make(plan.recipe, DOMAINS[domain], tier, i).texts() for domain, tier, i in jobs)
