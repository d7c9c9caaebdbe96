"""Rollouts from servers: prompts go out side by side, answers come back in our contract, whatever the server is.

Shapes: P tokens of a prompt, L of an answer.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from megatron_glmv.config.rl import ServerConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.inference.completion import FAILED, LENGTH, STOP
from megatron_glmv.inference.media import MediaFiles
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.inference.sampling import seed_of
from megatron_glmv.rl.rollout.contract import ForceAnswer, Request, Rollout
from megatron_glmv.rl.rollout.server import Server, ServerError


@dataclass(frozen=True)
class Question:
    """What a server is asked: `count` answers to a prompt that may go on with the beginning of one."""

    prompt: Prompt
    pixels: Mapping[str, torch.Tensor]
    """uint8 patches by key of the medium."""
    begun: tuple[int, ...]
    count: int
    most: int
    seed: int
    greedy: bool
    stop: tuple[int, ...]

    @property
    def token_ids(self) -> list[int]:
        return [*self.prompt.input_ids.tolist(), *self.begun]


@dataclass(frozen=True)
class Said:
    """One answer of a server, that which ended it included."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


class Dialect(Protocol):
    """What one kind of server is asked for tokens, and how its answer is read."""

    def ask(self, server: Server, question: Question) -> list[Said]:
        """Raises ServerError where the answer is not one to this question."""


class RemoteEngine:
    """The rollout engine of a rank that has servers instead of a model."""

    def __init__(
        self,
        dialect: Dialect,
        servers: Sequence[Server],
        tokenizer: Tokenizer,
        files: MediaFiles,
        stop_tokens: Sequence[str],
        config: ServerConfig,
        rank: int,
    ) -> None:
        self.dialect, self.tokenizer, self.files, self.config = dialect, tokenizer, files, config
        self.servers = [*servers[rank % len(servers) :], *servers[: rank % len(servers)]]
        self.stop_ids = tuple(sorted(tokenizer.special(name) for name in stop_tokens if tokenizer.has(name)))
        self._turn = itertools.count()
        self._turn_lock = threading.Lock()

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
        """As the contract says; `batch_size` is the server's own business. An answer depends on its prompt's first
        number and its place in the group, not on what else is asked at the time (but for the server's rounding)."""
        free = threading.Semaphore(self.config.in_flight)
        waiting: list[list[Rollout] | Future[list[Rollout]]] = []
        with ThreadPoolExecutor(self.config.in_flight, thread_name_prefix="rollout") as pool:
            try:
                for request in requests:
                    pixels, error = self._decode(request.prompt)
                    if error:
                        waiting.append([_failed(request, number, error) for number in request.numbers])
                        continue
                    free.acquire()
                    asked = pool.submit(self._group, request, pixels, max_new_tokens, seed, greedy, force)
                    asked.add_done_callback(lambda _: free.release())
                    waiting.append(asked)
                found = [made.result() if isinstance(made, Future) else made for made in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [rollout for made in found for rollout in made]

    def _decode(self, prompt: Prompt) -> tuple[dict[str, torch.Tensor], str]:
        pixels: dict[str, torch.Tensor] = {}
        media = {medium.key: medium for medium in prompt.media}
        for (key, _), decoded in zip(media.items(), self.files.decode(list(media.values())), strict=True):
            if isinstance(decoded, SampleError):
                return {}, str(decoded)
            pixels[key] = decoded
        return pixels, ""

    def _group(
        self,
        request: Request,
        pixels: dict[str, torch.Tensor],
        most: int,
        seed: int,
        greedy: bool,
        force: ForceAnswer | None,
    ) -> list[Rollout]:
        count = len(request.numbers)
        first = most if force is None else min(force.budget, most)
        question = Question(
            prompt=request.prompt,
            pixels=pixels,
            begun=(),
            count=1 if greedy else count,
            most=first,
            seed=seed_of(seed, request.numbers[0]),
            greedy=greedy,
            stop=self.stop_ids,
        )
        answers = self._ask(question)
        answers = answers * count if greedy else answers
        made = []
        for number, said in zip(request.numbers, answers, strict=True):
            sampled = (True,) * len(said.token_ids)
            if force is not None and said.finish == LENGTH and first < most:
                said, sampled = self._go_on(question, said, force, most, seed_of(question.seed, number))
            made.append(self._rollout(request, number, said, sampled))
        return made

    def _go_on(
        self, question: Question, said: Said, force: ForceAnswer, most: int, seed: int
    ) -> tuple[Said, tuple[bool, ...]]:
        """The rest of an answer that reached the budget, behind the end of its thinking where it had none."""
        inserted = () if force.tokens[0] in said.token_ids else force.tokens[: most - len(said.token_ids)]
        begun = (*said.token_ids, *inserted)
        sampled = (*(True for _ in said.token_ids), *(False for _ in inserted))
        logprobs = (*said.logprobs, *(0.0 for _ in inserted))
        if len(begun) >= most:
            return Said(begun, logprobs, LENGTH), sampled
        rest = replace(question, begun=begun, count=1, most=most - len(begun), seed=seed)
        (more,) = self._ask(rest)
        whole = Said((*begun, *more.token_ids), (*logprobs, *more.logprobs), more.finish)
        return whole, (*sampled, *(True for _ in more.token_ids))

    def _ask(self, question: Question) -> list[Said]:
        """From the next server, or where that one does not answer from those behind it."""
        with self._turn_lock:
            start = next(self._turn)
        problems = []
        for place in range(len(self.servers)):
            server = self.servers[(start + place) % len(self.servers)]
            try:
                said = self.dialect.ask(server, question)
            except ServerError as error:
                problems.append(str(error))
                continue
            for answer in said:
                _check(answer, question, server)
            if len(said) != question.count:
                raise ServerError(f"{server.url} gave {len(said)} answers, {question.count} were asked for")
            return said
        raise ServerError("; ".join(problems))

    def _rollout(self, request: Request, number: int, said: Said, sampled: tuple[bool, ...]) -> Rollout:
        spoken = said.token_ids[:-1] if said.finish == STOP else said.token_ids
        return Rollout(
            prompt=request.id,
            number=number,
            token_ids=said.token_ids,
            logprobs=said.logprobs,
            sampled=sampled,
            text=self.tokenizer.decode(list(spoken)).strip(),
            finish=said.finish,
            media=tuple(medium.key for medium in request.prompt.media),
        )


def _failed(request: Request, number: int, error: str) -> Rollout:
    return Rollout(request.id, number, (), (), (), "", FAILED, error=error)


def _check(said: Said, question: Question, server: Server) -> None:
    """An answer of the asked shape. Raises ServerError: what is wrong here is wrong in every answer."""
    ids, ended = said.token_ids, bool(said.token_ids) and said.token_ids[-1] in question.stop
    wrong = None
    if not ids or len(ids) > question.most:
        wrong = f"{len(ids)} tokens where 1 to {question.most} were asked for"
    elif len(said.logprobs) != len(ids):
        wrong = f"{len(said.logprobs)} log-probabilities for {len(ids)} tokens"
    elif not all(math.isfinite(value) and value <= 1e-4 for value in said.logprobs):
        wrong = "log-probabilities that are none"
    elif (said.finish == STOP) != ended or any(token in question.stop for token in ids[:-1]):
        wrong = f"an answer that ends by {said.finish!r} with token {ids[-1]}, the stop tokens are {question.stop}"
    elif said.finish == LENGTH and len(ids) != question.most:
        wrong = f"{len(ids)} of {question.most} tokens and calls it {LENGTH!r}"
    if wrong:
        raise ServerError(f"{server.url} gave {wrong}")
