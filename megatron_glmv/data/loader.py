"""The packs of one data-parallel rank, step after step.

Pack number p = step x global batch + i is the same whatever the layout. Which replica takes which of them is decided by
their cost where a cost model is given (`balance.assign`), else replica r of D takes i = r, r + D, ... The
position is integers, so that a run resumed on another layout continues with exactly the packs that were next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.balance import assign
from megatron_glmv.data.batches import CPU, BatchMaker, Failure, Pack
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.documents import Part, split
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.held_out import HeldOutOrder
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.lengths import Layouts, measure
from megatron_glmv.data.locks import turn
from megatron_glmv.data.mixture import build
from megatron_glmv.data.order import PackOrder
from megatron_glmv.data.packing import fit
from megatron_glmv.data.pool import WorkerPool
from megatron_glmv.data.quarantine import LEDGER, Quarantine
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.data.types import Json, PackedBatch

KEPT_SHARES = 64
LEAST_JUDGED = 100
"""Samples a share of failures is taken of at least: one early failure does not end a run."""


class PackLoader:
    """Prefetches `data.prefetch` steps in `data.workers` processes; with 0 workers it decodes when asked."""

    def __init__(
        self,
        dataset: ShardDataset,
        data: DataConfig,
        vision: VisionConfig,
        tokenizer: Tokenizer,
        *,
        seed: int,
        global_batch: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        run_dir: Path | None = None,
        start_step: int = 0,
        worker_timeout: float = 300.0,
        cost: Cost | None = None,
        batch_at: Callable[[int], int] | None = None,
        held_out: bool = False,
        device: torch.device = CPU,
    ) -> None:
        """batch_at: packs of the step behind so many, where the global batch grows; each divides over the replicas.
        cost: evens out the replicas' work inside each step.
        device: what media are decoded on; the batches lie on the CPU in any case.
        held_out: the one step is a validation, a random subset of the set or all of it (data/held_out.py).
        run_dir: where the quarantine ledger lies; None keeps no ledger and no budget.
        worker_timeout: seconds of silence after which a decoder process is replaced.

        Raises DataError where too many samples are unusable, or none fits; ValueError where the replicas cannot share
        the global batch evenly.
        """
        if global_batch % dp_size:
            raise ValueError(f"a global batch of {global_batch} packs does not divide over {dp_size} replicas")
        self.dataset, self.data = dataset, data
        self.global_batch, self.dp_rank, self.dp_size, self.run_dir = global_batch, dp_rank, dp_size, run_dir
        self._batch_at = batch_at or (lambda step: global_batch)
        layouts = Layouts(dataset, tokenizer, data, vision)
        lengths = measure(layouts)
        kept = fit(lengths.tokens, lengths.media > 0, data.pack_tokens)
        parts = split(layouts, kept.dropped.tolist(), data.pack_tokens)
        documents = {part.sample for part in parts}
        self.unusable, self.too_long, self.truncated = (
            len(lengths.errors),
            len(kept.dropped) - len(documents),
            kept.truncated,
        )
        """Samples left out because they are broken, left out because no pack holds them, and cut at the end."""
        self.split = len(documents)
        """Documents that are several samples: their parts are numbered behind the samples of the data set."""
        self.usable = len(kept.samples) + self.split
        self._parts = parts
        self._length = np.append(np.minimum(lengths.tokens, data.pack_tokens), _column(parts, "length"))
        samples = np.append(kept.samples, len(dataset) + np.arange(len(parts)))
        mixture = None
        if data.mixture or data.mixture_schedule or data.max_epochs:
            mixture = build(data, [dataset.entry(self._source(int(i))).domain or "other" for i in samples], seed)
        stream = (samples, self._length[samples], data.pack_tokens)
        if held_out:
            self._order: PackOrder = HeldOutOrder(*stream, global_batch, seed)
        else:
            self._order = PackOrder(*stream, data.pack_window, seed, mixture)
        self._work = None
        """Cost of each sample; None deals packs out in turn."""
        if cost is not None and dp_size > 1:
            patches = np.append(lengths.patches, _column(parts, "patches"))
            pictures = np.append(lengths.pictures, _column(parts, "pictures"))
            self._work = cost.samples(self._length, patches, pictures)
        self._shares: dict[int, list[int]] = {}
        """First pack of a step -> this replica's packs of it."""
        self._record([Failure(*self._name(i), reason) for i, reason in lengths.errors.items()])
        self._judge(self.unusable, len(dataset), "of the data set cannot be used")
        self._seen = self._failed = 0
        """Samples handed out, and holes among them."""
        self._step = start_step
        self._anchor = (0, 0)
        """(step, number of its first pack) from which packs are counted."""
        self._asked = start_step
        """Steps before this one are asked for."""
        self._maker = BatchMaker(layouts, device) if data.workers == 0 else None
        self._pool = WorkerPool(layouts, data.workers, worker_timeout, device=device) if data.workers else None

    def next_step(self) -> list[PackedBatch]:
        """This replica's micro-batches of the next global step, in order."""
        step = self._step
        if self._pool is not None:
            while self._asked <= step + self.data.prefetch:
                for number in self._numbers(self._asked):
                    self._pool.submit(number, self._pack(number))
                self._asked += 1
        batches = [self._batch(number) for number in self._numbers(step)]
        self._step = step + 1
        return batches

    def step_ids(self, step: int) -> list[str]:
        """Keys of all samples of the global batch of a step, pack by pack, failed ones too.

        A part of a document is `key#start`, by the token it begins at.
        """
        first = self._first_pack(step)
        numbers = range(first, first + self._batch_at(step))
        return [self._ident(i) for number in numbers for i in self._order.pack(number)]

    def seek(self, step: int) -> None:
        """Continue with another step of the same run."""
        if self._pool is not None:
            self._pool.forget([number for asked in range(self._step, self._asked) for number in self._numbers(asked)])
        self._step = self._asked = step

    def state_dict(self) -> Json:
        """Position behind the last step handed out; JSON."""
        packs = self._first_pack(self._step)
        return {"step": self._step, "packs": packs, **self._order.state_at(packs)}

    def load_state_dict(self, state: Json) -> None:
        """Continue where `state_dict` stood, on any number of replicas or workers and with any global batch.

        Raises DataError where the state belongs to another data set, budget, window or seed.
        """
        self._order.load_state(state)
        self.seek(int(state["step"]))
        self._anchor = (int(state["step"]), int(state["packs"]))

    def close(self) -> None:
        """End the decoder processes."""
        if self._pool is not None:
            self._pool.close()
        self.dataset.close()

    def __enter__(self) -> PackLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_pack(self, step: int) -> int:
        at, packs = self._anchor
        if step >= at:
            return packs + sum(map(self._batch_at, range(at, step)))
        return packs - sum(map(self._batch_at, range(step, at)))

    def _numbers(self, step: int) -> Sequence[int]:
        """This replica's packs of a step, ascending."""
        first = self._first_pack(step)
        if self._work is None:
            return range(first + self.dp_rank, first + self._batch_at(step), self.dp_size)
        if first not in self._shares:
            packs = [self._order.pack(first + i) for i in range(self._batch_at(step))]
            costs = [float(self._work[list(pack)].sum()) for pack in packs]
            self._shares[first] = [first + i for i in assign(costs, self.dp_size)[self.dp_rank]]
            if len(self._shares) > KEPT_SHARES:
                del self._shares[next(iter(self._shares))]
        return self._shares[first]

    def _pack(self, number: int) -> Pack:
        samples = self._order.pack(number)
        whole = len(self.dataset)
        return Pack(
            tuple(self._source(i) for i in samples),
            tuple(int(self._length[i]) for i in samples),
            tuple(0 if i < whole else self._parts[i - whole].start for i in samples),
        )

    def _source(self, i: int) -> int:
        """The sample of the data set that sample or part `i` is of."""
        return i if i < len(self.dataset) else self._parts[i - len(self.dataset)].sample

    def _batch(self, number: int) -> PackedBatch:
        if self._pool is not None:
            batch, failures = self._pool.result(number)
        else:
            assert self._maker is not None
            batch, failures = self._maker.make(self._pack(number))
        self._seen += len(batch.sample_ids)
        if failures:
            self._failed += len(failures)
            self._record(failures)
            last = failures[-1]
            self._judge(self._failed, self._seen, f"failed, the last: {last.key}: {last.reason}")
        return batch

    def _judge(self, bad: int, seen: int, what: str) -> None:
        allowed = self.data.quarantine_budget * max(seen, LEAST_JUDGED)
        if self.run_dir is not None and bad > allowed:
            share = f"data.quarantine_budget={self.data.quarantine_budget:g} allows {allowed:.0f}"
            raise DataError(self.run_dir / LEDGER, f"{bad} of {seen} samples {what}; {share}")

    def _ident(self, i: int) -> str:
        """The key, for a part of a document with the token it begins at."""
        key, _ = self._name(self._source(i))
        return key if i < len(self.dataset) else f"{key}#{self._parts[i - len(self.dataset)].start}"

    def _name(self, i: int) -> tuple[str, str]:
        entry = self.dataset.entry(i)
        return entry.key, entry.shard

    def _record(self, failures: list[Failure]) -> None:
        """Into the ledger, which the replicas share: each takes the lock and reads what the others wrote."""
        if self.run_dir is None or not failures:
            return
        with turn(self.run_dir / f".{LEDGER}.lock"):
            ledger = Quarantine(self.run_dir, self.data.quarantine_budget)
            for failure in failures:
                ledger.add(failure.key, failure.shard, failure.reason)


def _column(parts: Sequence[Part], name: str) -> NDArray[np.int64]:
    return np.array([getattr(part, name) for part in parts], dtype=np.int64)
