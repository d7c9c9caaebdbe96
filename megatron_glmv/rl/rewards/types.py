"""What is judged, what comes out, and what a verifier is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_glmv.config.errors import ConfigError

REQUIRED, OPTIONAL, FORBIDDEN = "required", "optional", "forbidden"
"""Whether the final answer has to stand in `<|begin_of_box|>..<|end_of_box|>`, may, or must not."""


@dataclass(frozen=True)
class Item:
    """One response to judge. `response` is untrusted; `answer` and `extra` are the data set's."""

    domain: str
    """Names the verifier: see `domains.DOMAINS` and its aliases."""
    response: str
    """All that the model wrote, special tokens included."""
    answer: Any
    """The reference: text, a number, boxes, an action; each verifier says what it takes."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else a verifier reads, JSON values only: question, tolerance, choices, tests, ..."""


@dataclass(frozen=True)
class Judgement:
    """The verdict over one item."""

    reward: float
    """In [0, 1]."""
    extracted: str | None
    """The final answer as it was compared; None where the response holds none."""
    verifier: str
    """Who decided: a verifier's name, "format", "style", "<verifier>+llm", or "none"."""
    reason: str
    seconds: float
    """Wall time from the start of the judging of this item to its verdict, waiting for a free process left out."""
    failed: bool = False
    """Nothing could be decided: the judge model is out of reach. Leave the item out rather than call it wrong."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the reward is made of, by name, where it has parts: for health figures."""


@dataclass(frozen=True)
class Verdict:
    """What a verifier answers. `undecided`: the rules cannot tell, a model may (the paper's "exact, else judge")."""

    reward: float
    reason: str
    undecided: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    """What a reward with parts is made of, by name."""


def right(reason: str) -> Verdict:
    return Verdict(1.0, reason)


def wrong(reason: str) -> Verdict:
    return Verdict(0.0, reason)


def undecided(reason: str) -> Verdict:
    """0 unless a model is there to be asked."""
    return Verdict(0.0, reason, undecided=True)


Check = Callable[[str, Any, Mapping[str, Any]], Verdict]
"""(final answer, reference, extra) -> verdict. May raise ValueError, TypeError or KeyError on what it cannot read."""


Shoot = Callable[[str, bool], Any]
"""(HTML, whether it is the reference) -> browser.Screen."""
Look = Callable[[str, Any, Mapping[str, Any], Shoot], Verdict]
"""As Check, with a browser."""


@dataclass(frozen=True)
class Verifier:
    name: str
    check: Check
    box: str = REQUIRED
    isolated: bool = False
    """Runs in a process of the pool: whatever parses more than numbers, and whatever executes."""
    seconds: float = 5.0
    """Wall limit of one call in the pool; its process is killed then."""
    rubric: str = ""
    """What a judge model is told to look for where the rules are undecided; empty: it is never asked."""
    needs: str = ""
    """A module outside the standard library that it cannot do without."""
    executes: bool = False
    """Runs code, and is refused where no sandbox works."""
    model_only: bool = False
    """Rules decide nothing here: without a reward model or a judge model the domain is refused."""
    look: Look | None = None
    """Decides by what a browser shows, in the place of `check`; refused where there is no browser."""
    graded: bool = False
    """The judge model answers with a share instead of yes or no."""


@dataclass(frozen=True)
class JudgeOptions:
    """How everything is judged."""

    workers: int = 2
    """Processes of the pool; they start with the first call that needs one."""
    memory_mib: int = 2048
    """Address space of one of them."""
    browser: str = ""
    """The browser of domains that need one, by path or name; empty: the first known one on PATH."""
    seconds: float | None = None
    """Limit of one call instead of each verifier's own."""
    style: bool = True
    """Language mixing and repetition cost the reward."""
    thinking_opened: bool = False
    """The prompt ends with <think>: a response begins inside its thinking and closes it."""
    response_chars: int = 400_000
    """A longer response is refused unread (100k tokens of four characters)."""
    answer_chars: int = 100_000
    """The same for the final answer."""

    def __post_init__(self) -> None:
        for name in ("workers", "memory_mib", "response_chars", "answer_chars"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reward.{name}", getattr(self, name), "must be at least 1", f"give {name}=1 or more")
        if self.seconds is not None and self.seconds <= 0:
            raise ConfigError("reward.seconds", self.seconds, "must be above 0", "give null for each verifier's own")
