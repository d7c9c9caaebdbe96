"""`Judge`: responses in, rewards out. Takes a response apart, checks form and style, asks the verifier of its domain.

    with Judge(JudgeOptions(workers=2)) as judge:
        judgements = judge.judge([Item("math", response, "1/2")])

Whatever stands in a response, there is one judgement for it, within the verifier's limit: text that cannot be read is
reward 0 with the reason.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.rl.rewards import style
from megatron_glmv.rl.rewards.domains import find, nearest
from megatron_glmv.rl.rewards.extraction import Parts, take_apart
from megatron_glmv.rl.rewards.pool import TIMEOUT, Call, Pool, Reply
from megatron_glmv.rl.rewards.types import Item, Judgement, JudgeOptions, Verdict, Verifier, wrong


class Judge:
    """Owns the processes in which verifiers run; they start with the first item that needs one."""

    def __init__(self, options: JudgeOptions | None = None) -> None:
        self.options = options or JudgeOptions()
        self._pool = Pool(self.options.workers, self.options.memory_mib)

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; the next `judge` would start new ones."""
        self._pool.close()

    def require(self, domains: Iterable[str]) -> None:
        """Raise ConfigError for the first domain that cannot be judged: ask before a run, not during it."""
        for domain in domains:
            verifier = find(domain)
            if verifier is None:
                raise ConfigError("domain", domain, "has no verifier", f"the nearest name is {nearest(domain)!r}")
            if verifier.needs and importlib.util.find_spec(verifier.needs) is None:
                raise ConfigError(
                    "domain", domain, f"its verifier needs {verifier.needs}", "pip install 'megatron-glmv[rl]'"
                )

    def judge(self, items: Sequence[Item]) -> list[Judgement]:
        """One judgement an item, in order. May be called from any thread.

        Raises ConfigError where a verifier's package is not installed: reward 0 for everybody would hide it.
        """
        self.require({item.domain for item in items if find(item.domain)})
        started = [_Open(item, self.options) for item in items]
        calls = [one for one in started if one.verdict is None]
        replies = self._pool.run([one.call(self.options.seconds) for one in calls]) if calls else []
        for one, reply in zip(calls, replies, strict=True):
            one.take(reply)
        return [one.close() for one in started]


class _Open:
    """An item on its way: what is known of it so far."""

    def __init__(self, item: Item, options: JudgeOptions) -> None:
        begun = time.monotonic()
        self.item = item
        self.verifier = find(item.domain)
        self.decider = "none"
        self.final: str | None = None
        self.verdict = self._look(options)
        self.seconds = time.monotonic() - begun

    def _look(self, options: JudgeOptions) -> Verdict | None:
        """The verdict where it needs no other process."""
        if self.verifier is None:
            return wrong(
                f"no verifier for domain {self.item.domain[:64]!r}; the nearest is {nearest(self.item.domain)!r}"
            )
        self.decider = "format"
        if len(self.item.response) > options.response_chars:
            return wrong(f"a response of more than {options.response_chars} characters")
        box = str(self.item.extra.get("box", self.verifier.box))
        parts = take_apart(self.item.response, box, thinking_opened=options.thinking_opened)
        if parts.fault or parts.final is None:
            return wrong(parts.fault)
        self.final = parts.final
        if not self.final:
            return wrong("an empty answer")
        if len(self.final) > options.answer_chars:
            return wrong(f"an answer of more than {options.answer_chars} characters")
        self.decider = "style"
        if options.style and (flaw := _style_fault(parts)):
            return wrong(flaw)
        self.decider = self.verifier.name
        return None if self.verifier.isolated else _check(self.verifier, self.final, self.item)

    def call(self, seconds: float | None) -> Call:
        assert self.verifier is not None
        payload: dict[str, Any] = {
            "verifier": self.verifier.name,
            "final": self.final,
            "answer": self.item.answer,
            "extra": dict(self.item.extra),
        }
        return Call(payload, seconds or self.verifier.seconds)

    def take(self, reply: Reply) -> None:
        self.seconds += reply.seconds
        if reply.value is None:
            said = "took longer than its limit" if reply.failure == TIMEOUT else "its process died (memory, or a crash)"
            self.verdict = wrong(f"{reply.failure}: {said} after {reply.seconds:.1f} s")
        else:
            self.verdict = Verdict(**reply.value)

    def close(self) -> Judgement:
        assert self.verdict is not None
        reward = min(1.0, max(0.0, float(self.verdict.reward)))
        return Judgement(reward, self.final, self.decider, self.verdict.reason, self.seconds)


def _style_fault(parts: Parts) -> str:
    return style.fault(parts.thinking) or style.fault(parts.prose)


def _check(verifier: Verifier, final: str, item: Item) -> Verdict:
    try:
        return verifier.check(final, item.answer, item.extra)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError) as error:
        return wrong(f"cannot be read: {type(error).__name__}: {error}"[:300])
