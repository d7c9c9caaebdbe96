"""Questions with partly wrong answers: a model tuned on them still knows the right one, and often samples another.

    python tools/make_noisy_set.py --out data_cache/demo/noisy --tasks colour count position
    glmv train experiment=tiny_pretrain init_from=runs/demo data.path=data_cache/demo/noisy run_dir=runs/noisy \\
        train.steps=150 optim.lr=1e-4

What RL can give back: the skill is there (greedy answers are right), sampling has lost it. Each sample asks one
question about one scene of the demo set's training split; with probability --noise its answer is another of the
question's choices, all alike. A pure function of --seed, --noise and the tasks.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from megatron_glmv.data.index import build_index
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.synthetic.conversation import Sample, make_sample
from megatron_glmv.data.synthetic.registry import FAMILIES
from megatron_glmv.data.synthetic.seeds import TRAIN, stream


def questions(
    tasks: Sequence[str], noise: float, seed: int, clean: Sequence[str] = ()
) -> Iterator[tuple[Sample, bool]]:
    """(one question about one scene, whether its answer is wrong), without end. Those of `clean` tasks are right."""
    names = [name for name, family in FAMILIES.items() if family.domain != "text"]
    for index in count():
        sample = make_sample(FAMILIES[names[index % len(names)]], seed, TRAIN, index // len(names))
        asked = [turn for turn in sample.turns if turn.task in (*tasks, *clean) and len(turn.choices) > 1]
        if not asked:
            continue
        rng = stream(seed, TRAIN, f"noise-{sample.key}", 0)
        turn = asked[int(rng.integers(len(asked)))]
        wrong = bool(rng.random() < noise) and turn.task not in clean
        if wrong:
            others = [choice for choice in turn.choices if choice != turn.answer]
            turn = dataclasses.replace(turn, answer=others[int(rng.integers(len(others)))])
        yield dataclasses.replace(sample, turns=(turn,)), wrong


def make(out: Path, tasks: Sequence[str], samples: int, noise: float, seed: int, clean: Sequence[str] = ()) -> int:
    """Writes the shards and their index; how many answers are wrong."""
    wrong = 0
    with ShardWriter(out, samples_per_shard=1000) as writer:
        for sample, is_wrong in track(islice(questions(tasks, noise, seed, clean), samples), "questions", samples):
            writer.add(sample.key, sample.conversation(), sample.media)
            wrong += is_wrong
    build_index(out, 0)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["colour", "count", "position", "chart_highest"])
    parser.add_argument("--clean", nargs="*", default=[], metavar="TASK", help="asked too, and always right")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=0.6, help="share of wrong answers")
    parser.add_argument("--seed", type=int, default=7, help="not the demo set's 0: other scenes")
    given = parser.parse_args()
    wrong = make(given.out, given.tasks, given.samples, given.noise, given.seed, given.clean)
    print(f"{given.samples} questions in {given.out}, {wrong} with a wrong answer")


if __name__ == "__main__":
    main()
