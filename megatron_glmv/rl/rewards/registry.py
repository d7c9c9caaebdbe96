"""`Judge`: responses in, rewards out. Takes a response apart, checks form and style, asks the verifier of its domain.

    with Judge(JudgeOptions(workers=2)) as judge:
        judgements = judge.judge([Item("math", response, "1/2")])

Whatever stands in a response, there is one judgement for it, within the verifier's limit: text that cannot be read is
reward 0 with the reason. What rules leave undecided goes to a judge model if there is one, else is reward 0.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.rl import sandbox
from megatron_glmv.rl.rewards import browser, style
from megatron_glmv.rl.rewards.domains import find, nearest
from megatron_glmv.rl.rewards.extraction import Parts, take_apart
from megatron_glmv.rl.rewards.health import PASS, Health
from megatron_glmv.rl.rewards.judge_model import JudgeModel, Opinion, Question, Voting
from megatron_glmv.rl.rewards.pool import TIMEOUT, Call, Pool, Reply
from megatron_glmv.rl.rewards.reward_model import Answered, RewardModel, Scoring
from megatron_glmv.rl.rewards.screens import Screens
from megatron_glmv.rl.rewards.types import Item, Judgement, JudgeOptions, Verdict, Verifier, wrong

AUDITED = 100
"""One of so many verdicts by rules is asked of the judge model, too: for the health figures, not for the reward."""


class Judge:
    """Owns the processes in which verifiers run; they start with the first item that needs one."""

    def __init__(
        self,
        options: JudgeOptions | None = None,
        model: JudgeModel | None = None,
        reward_model: RewardModel | None = None,
    ) -> None:
        self.options = options or JudgeOptions()
        self.health = Health()
        self._pool = Pool(self.options.workers, self.options.memory_mib)
        self._screens = Screens(self.options.workers, self.options.browser)
        self._voting = Voting(model) if model else None
        self._scoring = Scoring(reward_model) if reward_model else None

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; the next `judge` would start new ones."""
        self._pool.close()
        self._screens.close()

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
            if verifier.executes:
                try:
                    sandbox.method()
                except sandbox.SandboxRefused as refusal:
                    raise ConfigError("domain", domain, str(refusal)) from None
            if verifier.look:
                try:
                    browser.check(self.options.browser)
                except browser.BrowserRefused as refusal:
                    raise ConfigError("domain", domain, str(refusal)) from None
            if verifier.model_only and self._voting is None and self._scoring is None:
                message = "only a reward model or a judge model can grade it"
                raise ConfigError("domain", domain, message, "give the address of one")

    def judge(self, items: Sequence[Item]) -> list[Judgement]:
        """One judgement an item, in order. May be called from any thread.

        Raises ConfigError where a verifier's package or judge model is missing: reward 0 for everybody would hide it.
        """
        self.require({item.domain for item in items if find(item.domain)})
        opened = [_Open(item, self.options) for item in items]
        shown = [one for one in opened if one.verdict is None and one.looks]
        calls = [one for one in opened if one.verdict is None and not one.looks]
        replies = self._pool.run([one.call(self.options.seconds) for one in calls]) if calls else []
        for one, reply in zip(calls, replies, strict=True):
            one.take(reply)
        if shown:
            found = self._screens.look([one.sight() for one in shown], self.options.seconds)
            for one, looked in zip(shown, found, strict=True):
                one.verdict, one.failure, one.failed = looked.verdict, looked.failure, looked.failed
                one.seconds += looked.seconds
        if self._scoring:
            scored = [one for one in opened if one.scored]
            for one, opinion in zip(scored, self._scoring.ask([one.answered() for one in scored]), strict=True):
                one.hear(opinion, "rm")
        if self._voting:
            asked = [one for one in opened if (one.undecided or one.audited) and not (self._scoring and one.scored)]
            for one, opinion in zip(asked, self._voting.ask([one.question() for one in asked]), strict=True):
                self._hear(one, opinion)
        judgements = [one.close() for one in opened]
        for one, judgement in zip(opened, judgements, strict=True):
            name = one.verifier.name if one.verifier else "none"
            decided = (judgement.verifier, one.failure, judgement.failed, judgement.parts)
            self.health.add(name, judgement.reward, judgement.seconds, *decided)
        return judgements

    def _hear(self, one: _Open, opinion: Opinion) -> None:
        assert one.verifier is not None and one.verdict is not None
        health = self.health.of(one.verifier.name)
        if opinion.score is not None:
            health.asked += 1
            passes = (opinion.score >= PASS) != (one.verdict.reward >= PASS)
            health.disagreed += opinion.split or (not one.undecided and passes)
        if one.undecided:
            one.hear(opinion, "llm")


class _Open:
    """An item on its way: what is known of it so far."""

    def __init__(self, item: Item, options: JudgeOptions) -> None:
        begun = time.monotonic()
        self.item = item
        self.verifier = find(item.domain)
        self.scored = False
        self.decider = "none"
        self.failure = ""
        self.failed = False
        self.final: str | None = None
        self.verdict = self._look(options)
        self.seconds = time.monotonic() - begun

    def _look(self, options: JudgeOptions) -> Verdict | None:
        """The verdict where it needs no other process."""
        domain = self.item.domain
        if self.verifier is None:
            return wrong(f"no verifier for domain {domain[:64]!r}; the nearest is {nearest(domain)!r}")
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
        self.scored = self.verifier.model_only
        return None if self.verifier.isolated or self.verifier.look else _check(self.verifier, self.final, self.item)

    @property
    def looks(self) -> bool:
        return self.verifier is not None and self.verifier.look is not None

    def sight(self) -> tuple[Verifier, str, Any, Mapping[str, Any]]:
        assert self.verifier is not None and self.final is not None
        return self.verifier, self.final, self.item.answer, self.item.extra

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
        """The pool's reply."""
        self.seconds += reply.seconds
        self.failure = reply.failure
        if reply.value is None:
            said = "took longer than its limit" if reply.failure == TIMEOUT else "its process died (memory, or a crash)"
            self.verdict = wrong(f"{reply.failure}: {said}, after {reply.seconds:.1f} s")
        else:
            self.verdict = Verdict(**reply.value)

    @property
    def undecided(self) -> bool:
        return bool(self.verdict and self.verdict.undecided and self.verifier and self.verifier.rubric)

    @property
    def audited(self) -> bool:
        """Whether this verdict by rules is drawn for an audit: by its text, so that a resumed run draws the same."""
        if not (self.verifier and self.verifier.rubric and self.final and self.decider == self.verifier.name):
            return False
        digest = hashlib.sha256(self.final.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:4]) % AUDITED == 0

    def question(self) -> Question:
        assert self.verifier is not None and self.final is not None
        extra = self.item.extra
        rubric, asked = str(extra.get("rubric") or self.verifier.rubric), str(extra.get("question") or "")
        answer = self.item.answer
        reference = "" if answer is None else answer if isinstance(answer, str) else repr(answer)
        return Question(rubric, self.final, reference, asked, self.verifier.graded)

    def answered(self) -> Answered:
        """What a reward model is shown: `messages` in extra, else its `question`, and the answer without thinking."""
        assert self.final is not None
        turns = self.item.extra.get("messages") or [
            {"role": "user", "content": str(self.item.extra.get("question") or "")}
        ]
        return Answered(turns, self.final)

    def hear(self, opinion: Opinion, of: str) -> None:
        """A model's opinion on what the rules left open. `of`: "llm", a judge model, or "rm", a reward model."""
        assert self.verdict is not None
        self.seconds += opinion.seconds
        self.decider += f"+{of}"
        if opinion.score is None:
            self.failed = True
            name = {"llm": "judge", "rm": "reward"}[of]
            self.verdict = wrong(f"{self.verdict.reason}; the {name} model: {opinion.reason}")
        else:
            parts = {} if opinion.raw is None else {"scalar": opinion.raw}
            self.verdict = Verdict(max(opinion.score, self.verdict.reward), opinion.reason, parts=parts)

    def close(self) -> Judgement:
        assert self.verdict is not None
        reward = min(1.0, max(0.0, float(self.verdict.reward)))
        verdict = self.verdict
        return Judgement(
            reward, self.final, self.decider, verdict.reason, self.seconds, self.failed, dict(verdict.parts)
        )


def _style_fault(parts: Parts) -> str:
    return style.fault(parts.thinking) or style.fault(parts.prose)


def _check(verifier: Verifier, final: str, item: Item) -> Verdict:
    try:
        return verifier.check(final, item.answer, item.extra)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError, AttributeError) as error:
        return wrong(f"cannot be read: {type(error).__name__}: {error}"[:300])
