"""Rollouts from a model in this process: a prompt's answers share its prefill, and every token keeps its
log-probability.

Shapes: B prompts of a batch, G answers to each, R rows of the batch (B x G at first), W vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from megatron.core.inference.contexts import StaticInferenceContext

from megatron_glmv.data.errors import SampleError
from megatron_glmv.inference.completion import FAILED, LENGTH, STOP
from megatron_glmv.inference.engine import Engine, continued, equal_lengths
from megatron_glmv.inference.features import Features
from megatron_glmv.inference.sampling import Sampler, Sampling
from megatron_glmv.model.replay import choosers
from megatron_glmv.rl.rollout.contract import ForceAnswer, Request, Rollout
from megatron_glmv.rl.rollout.routes_text import Experts, packed
from megatron_glmv.rl.rollout.weights import WeightSync


@dataclass
class _Row:
    """One answer in the making."""

    id: str
    number: int
    media: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    """Tokens to insert next."""
    ended: bool = False
    routes: list[Experts] = field(default_factory=list)
    """[tokens, layers, K] of the prompt, then of each token of the answer that was read."""

    def add(self, token: int, logprob: float, sampled: bool) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.sampled.append(sampled)


class RolloutEngine(Engine):
    """The engine of `glmv generate`, answering in groups. `greedy` draws belong to evaluation."""

    def record_routes(self) -> None:
        """From here on rollouts have their experts with them."""
        for chooser in choosers(self.model):
            chooser.recorded = []

    def _routes(self, tokens: int) -> Experts | None:
        """[rows, tokens, layers, K] of the pass before, None where they are not recorded."""
        passes = [chooser.recorded for chooser in choosers(self.model) if chooser.recorded is not None]
        if not passes:
            return None
        of_layers = [torch.cat(recorded) for recorded in passes]
        for recorded in passes:
            recorded.clear()
        found = torch.stack(of_layers, dim=1)  # tokens of a sequence lie apart, rows together
        found = found.reshape(tokens, -1, *found.shape[1:]).transpose(0, 1)
        return np.ascontiguousarray(found.to(torch.int16).cpu().numpy())

    def forget(self) -> None:
        """Drops what was encoded with weights that have changed since."""
        self.features = Features(self.model.vision, self.features.files, self.device)

    def roll(
        self,
        requests: Sequence[Request],
        max_new_tokens: int,
        seed: int,
        *,
        greedy: bool = False,
        force: ForceAnswer | None = None,
        batch_size: int = 256,
    ) -> list[Rollout]:
        """Answers in the order of the requests and their numbers; every request has equally many. A prompt whose media
        can't be used has answers that are `failed`, without tokens."""
        if not requests:
            return []
        each = len(requests[0].numbers)
        sampling = Sampling(temperature=0.0 if greedy else 1.0, seed=seed)
        made: dict[int, Rollout] = {}
        lengths = [len(request.prompt) * each for request in requests]
        for places in equal_lengths(lengths, max_new_tokens * each, max(1, batch_size // each)):
            batch = [requests[place] for place in places]
            usable = list(self._usable(batch, made))
            if usable:
                for rollout in self._group(usable, max_new_tokens, sampling, force):
                    made[rollout.number] = rollout
        return [made[number] for request in requests for number in request.numbers]

    def _usable(self, batch: Sequence[Request], made: dict[int, Rollout]) -> Iterator[Request]:
        features = self.features.of([medium for request in batch for medium in request.prompt.media])
        for request in batch:
            errors = [e for m in request.prompt.media if isinstance(e := features[m.key], SampleError)]
            if not errors:
                yield request
            for number in request.numbers if errors else ():
                made[number] = Rollout(request.id, number, (), (), (), "", FAILED, error=str(errors[0]))

    @torch.no_grad()
    def _group(
        self, batch: list[Request], most: int, sampling: Sampling, force: ForceAnswer | None
    ) -> Iterator[Rollout]:
        """Prompts of equal length."""
        prompts, each = [request.prompt for request in batch], len(batch[0].numbers)
        rows = [
            _Row(request.id, number, tuple(medium.key for medium in request.prompt.media))
            for request in batch
            for number in request.numbers
        ]
        sampler = Sampler(sampling, [row.number for row in rows])
        length = len(prompts[0])
        positions = torch.stack([continued(p.position_ids, most) for p in prompts], dim=1).to(self.device)
        ids = torch.stack([p.input_ids for p in prompts]).to(self.device)
        context = StaticInferenceContext(len(prompts), length + most)
        embeddings = self._embed(prompts, ids)
        alive = list(range(len(rows)))  # the answer of each row of the batch
        for count in range(most):
            # Keys are cached before their rotation, so attention asks for the positions of everything so far.
            seen = positions[:, :, : length + count]
            logits = self.model(ids, seen, embeddings=embeddings, inference_context=context)[:, -1].float()
            routes = self._routes(ids.shape[1])
            context.increment_sequence_len_offset(ids.shape[1])
            context.enable_decode_mode()
            if count == 0 and each > 1:  # one prefill for the answers to a prompt
                among = torch.arange(len(prompts), device=self.device).repeat_interleave(each)
                logits, positions = logits[among], positions[:, among]
                _take_rows(context, among)
            if routes is not None:
                for place, i in enumerate(alive):
                    rows[i].routes.append(routes[place // each if count == 0 else place])
            tokens = self._next(logits, [rows[i] for i in alive], alive, sampler, force)
            going = [place for place, i in enumerate(alive) if not rows[i].ended]
            if not going:
                break
            if 2 * len(going) <= len(alive):  # few long answers do not pay for many short ones
                kept = torch.tensor(going, device=self.device)
                alive, tokens, positions = [alive[i] for i in going], tokens[kept.cpu()], positions[:, kept]
                _take_rows(context, kept)
            ids = tokens[:, None].to(self.device)
            embeddings = self.model.language.embedding(input_ids=ids, position_ids=None)
        for row in rows:
            spoken = row.tokens[:-1] if row.ended else row.tokens
            yield Rollout(
                prompt=row.id,
                number=row.number,
                token_ids=tuple(row.tokens),
                logprobs=tuple(row.logprobs),
                sampled=tuple(row.sampled),
                text=self.tokenizer.decode(spoken).strip(),
                finish=STOP if row.ended else LENGTH,
                media=row.media,
                routes=packed(row.routes, length + len(row.tokens) - 1),
            )

    def _next(
        self, logits: torch.Tensor, rows: list[_Row], numbers: list[int], sampler: Sampler, force: ForceAnswer | None
    ) -> torch.Tensor:
        """The next token of each row [R], sampled or inserted. Rows that have ended run on with what comes."""
        tokens = sampler.pick(logits, numbers)
        for place, row in enumerate(rows):
            if force is not None and len(row.tokens) == force.budget and force.tokens[0] not in row.tokens:
                row.queue = list(force.tokens)
            if row.queue:
                tokens[place] = row.queue[0]
        drawn = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None].to(logits.device))[:, 0]
        for row, token, logprob in zip(rows, tokens.tolist(), drawn.tolist(), strict=True):
            if row.ended:
                continue
            inserted = bool(row.queue)
            if inserted:
                row.queue.pop(0)
            row.add(token, logprob, not inserted)
            row.ended = not inserted and token in self.stop_ids
        return tokens


class InProcessWeights:
    """The engine's model as a copy of the trained one."""

    def __init__(self, copy: WeightSync, engine: RolloutEngine) -> None:
        self.copy, self.engine = copy, engine

    def sync(self) -> None:
        self.copy()
        self.engine.forget()

    def verify(self) -> None:
        self.copy.verify()


def _take_rows(context: Any, rows: torch.Tensor) -> None:
    """The rows of the key-value cache that go on, in this order; one may be taken several times."""
    for layer, (keys, values) in context.key_value_memory_dict.items():
        context.key_value_memory_dict[layer] = (keys[:, rows], values[:, rows])
    context.max_batch_size = len(rows)
