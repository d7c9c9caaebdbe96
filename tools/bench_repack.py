"""Forward and backward of one rollout batch, packed as naively as one can and into the fewest micro-steps; one run.

    python tools/bench_repack.py                                   # tiny GLM-4.5V on this machine
    python tools/bench_repack.py --answers 512 --pack-tokens 32768 --median 3000 --most 16000 --model glm41v   # a GPU

Every micro-step is a pack of the same fixed number of tokens, padded, so its time hardly depends on what is in it:
what counts is how many there are. Answers have lengths as reasoning has them (log-normal, a long tail). The ways:

    one an answer   a micro-step for each
    in order        as they came from the rollout, a new pack where the next does not fit
    fewest          best fit, longest first (rl/batch.py), as training does

Wall and CPU seconds are medians over --repeats, the ways in turn. All have the same gradient; how far it differs is
printed. arXiv 2507.01006, section 5.4: such re-packing "halves our forward-backward time".
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import Config
from megatron_glmv.parallel.launch import RankContext, launch

PRELOAD = ("megatron_glmv.stages.preload", "megatron_glmv.stages.rlcs")
WAYS = ("one an answer", "in order", "fewest")


@dataclass(frozen=True)
class Job:
    config: Config
    answers: int
    prompt: int
    """Tokens of each prompt."""
    median: float
    """Of the tokens of an answer."""
    spread: float
    """Standard deviation of their logarithm."""
    most: int
    repeats: int


@dataclass(frozen=True)
class Timed:
    micro_steps: int
    filled: float
    """Share of the packs' tokens that are not padding."""
    wall: list[float]
    cpu: list[float]
    distance: float
    """Of the gradient from that of `fewest`, relative to its norm."""


def in_order(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Next fit: a pack is closed when the next answer does not fit."""
    from megatron_glmv.data.packing import aligned

    packs: list[list[int]] = []
    free = 0
    for i, length in enumerate(lengths):
        if aligned(length) > free:
            packs.append([])
            free = budget
        packs[-1].append(i)
        free -= aligned(length)
    return packs


def judged_groups(job: Job) -> tuple[list[Any], dict[str, Any]]:
    """Groups of eight answers of random tokens, and their prompts."""
    import numpy as np
    import torch

    from megatron_glmv.inference.prompts import Prompt
    from megatron_glmv.rl.group import Group
    from megatron_glmv.rl.rollout.contract import Rollout

    rng = np.random.default_rng(0)
    vocab = job.config.model.text.vocab
    groups, prompts = [], {}
    for n in range(job.answers // 8):
        ids = torch.from_numpy(rng.integers(0, vocab, job.prompt))
        ramp = torch.arange(job.prompt).expand(3, job.prompt)
        prompts[f"p{n}"] = Prompt(ids, ramp, torch.zeros(0, dtype=torch.int64), ())
        sizes = np.clip(rng.lognormal(np.log(job.median), job.spread, 8), 2, job.most).astype(int)
        said = [tuple(rng.integers(0, vocab, size).tolist()) for size in sizes]
        rollouts = tuple(
            Rollout(f"p{n}", 8 * n + k, one, (-6.0,) * len(one), (True,) * len(one), "", "stop")
            for k, one in enumerate(said)
        )
        rewards = tuple(float(k < 4) for k in range(8))
        groups.append(Group(f"p{n}", "d", "t", job.prompt, 0, 0, rollouts, rewards, ("exact",) * 8, 0.0))
    return groups, prompts


def times(job: Job, context: RankContext) -> dict[str, Timed]:
    from megatron_glmv.stages.session import open_session

    with open_session(job.config, context) as session:
        import torch

        from megatron_glmv.data.collate import Sample, collate
        from megatron_glmv.data.cost import Cost
        from megatron_glmv.rl.advantage import response_weights
        from megatron_glmv.rl.batch import answer_layout, lay_out_packs, targets_of
        from megatron_glmv.rl.learner import answers_of
        from megatron_glmv.rl.loss import PolicyLoss
        from megatron_glmv.stages.parts import build_trainer

        config = job.config
        budget, values = config.data.pack_tokens, config.model.vision.patch_values
        trainer = build_trainer(config, session)
        groups, prompts = judged_groups(job)
        answers = [answer for group in groups for answer in answers_of(group, by_deviation=True)]
        fewest = lay_out_packs(answers, "sample", budget, 1, 1, Cost.of(config.model))
        lengths = [answer.length for answer in fewest.answers]
        ways = {
            "one an answer": [[i] for i in range(len(lengths))],
            "in order": in_order(lengths, budget),
            "fewest": [list(pack) for pack in fewest.packs],
        }
        ready = {}
        for way, packs in ways.items():
            batch = replace(fewest, packs=tuple(map(tuple, packs)))
            made = []
            for pack in packs:
                chosen = [fewest.answers[i] for i in pack]
                layouts = [
                    answer_layout(prompts[a.group.prompt], a.rollout, response_weights(a.trained, "sample"))
                    for a in chosen
                ]
                samples = [Sample(a.key, layout) for a, layout in zip(chosen, layouts, strict=True)]
                made.append(collate(samples, budget, 0, values))
            ready[way] = (batch, made, PolicyLoss(config.rl, targets_of(batch, budget), session.groups.cp))

        def gradient() -> torch.Tensor:
            return torch.cat([p.main_grad.flatten() for c in trainer.chunks for p in c.parameters()]).clone()

        wall: dict[str, list[float]] = {way: [] for way in ways}
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        gradients = {}
        for turn in range(job.repeats + 1):  # the first warms up
            for way, (batch, packs, policy) in ready.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                trainer.accumulate(packs, policy, batch.weight, None)
                if session.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    wall[way].append(time.perf_counter() - began)
                    cpu[way].append(time.process_time() - began_cpu)
                gradients[way] = gradient()
        norm = gradients["fewest"].norm()
        return {
            way: Timed(
                len(ways[way]),
                sum(lengths) / (len(ways[way]) * budget),
                wall[way],
                cpu[way],
                float((gradients[way] - gradients["fewest"]).norm() / norm),
            )
            for way in ways
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny_glm45v")
    parser.add_argument("--answers", type=int, default=96, help="a multiple of 8")
    parser.add_argument("--pack-tokens", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--median", type=float, default=150.0, help="tokens of an answer")
    parser.add_argument("--spread", type=float, default=0.9, help="standard deviation of their logarithm")
    parser.add_argument("--most", type=int, default=900, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    own = [f"model={given.model}", f"data.pack_tokens={given.pack_tokens}", "rl.prompts=none", "data.path="]
    config = compose(["experiment=tiny_rlcs", *own])
    sizes = (given.answers, given.prompt, given.median, given.spread, given.most, given.repeats)
    (found,) = launch(partial(times, Job(config, *sizes)), 1, preload=PRELOAD)
    table = Table(title=f"{given.answers} answers in packs of {given.pack_tokens} tokens, {given.model}")
    for head in ("packing", "micro-steps", "filled", "wall [s]", "CPU [s]", "CPU, x fewest", "gradient differs by"):
        table.add_column(head, justify="left" if head == "packing" else "right")
    base = statistics.median(found["fewest"].cpu)
    for way in WAYS:
        one = found[way]
        seconds = statistics.median(one.cpu)
        shown = [f"{statistics.median(one.wall):.2f}", f"{seconds:.2f}", f"{seconds / base:.2f}", f"{one.distance:.1e}"]
        table.add_row(way, str(one.micro_steps), f"{one.filled:.0%}", *shown)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
