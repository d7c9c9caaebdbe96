"""A few browsers for one judge, and what they have shown of references."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from megatron_glmv.rl.rewards.browser import Broken, Browser, Late, Screen
from megatron_glmv.rl.rewards.pool import DIED, TIMEOUT
from megatron_glmv.rl.rewards.types import Verdict, Verifier, wrong

Asked = tuple[Verifier, str, Any, Mapping[str, Any]]
"""Verifier, final answer, reference, extra."""
REMEMBERED = 64
"""Screens of references that are kept: a group's answers share theirs. One is 3 MB, an extreme one 13."""


@dataclass(frozen=True)
class Looked:
    """A verdict by what a browser showed. `failure` is "", "timeout" or "died"; `failed`: there is no reference to see.
    `seconds` without waiting for a browser and for the reference."""

    verdict: Verdict
    failure: str
    seconds: float
    failed: bool = False


class _NoReference(Exception):
    """It was late, or broke the browser."""


class Screens:
    """Browsers start with the first page. `look` may be called from any thread."""

    def __init__(self, workers: int, path: str = "") -> None:
        self._browsers = [Browser(path) for _ in range(workers)]
        self._free: SimpleQueue[Browser] = SimpleQueue()
        for browser in self._browsers:
            self._free.put(browser)
        self._references: dict[str, Screen] = {}

    @property
    def pids(self) -> list[int]:
        return [browser.pid for browser in self._browsers if browser.pid]

    def look(self, asked: Sequence[Asked], seconds: float | None) -> list[Looked]:
        """One verdict a (verifier, final answer, reference, extra), in order. Raises BrowserRefused."""
        with ThreadPoolExecutor(len(self._browsers)) as threads:
            return list(threads.map(lambda one: self._look(one, seconds or one[0].seconds), asked))

    def close(self) -> None:
        for browser in self._browsers:
            browser.close()

    def _look(self, asked: Asked, seconds: float) -> Looked:
        verifier, final, answer, extra = asked
        assert verifier.look is not None
        browser = self._free.get()
        begun = time.monotonic()

        def shoot(html: str, reference: bool) -> Screen:
            if not reference:
                return browser.shoot(html, seconds)
            if html not in self._references:
                if len(self._references) >= REMEMBERED:
                    self._references.clear()
                nonlocal begun
                started = time.monotonic()
                try:
                    self._references[html] = browser.shoot(html, verifier.seconds)
                except (Late, Broken) as error:
                    raise _NoReference(str(error)) from None
                begun += time.monotonic() - started
            return self._references[html]

        failure, failed = "", False
        try:
            browser.start()
            begun = time.monotonic()
            verdict = verifier.look(final, answer, extra, shoot)
        except Late:
            failure, verdict = TIMEOUT, wrong("timeout: the page took longer than its limit")
        except Broken as error:
            failure, verdict = DIED, wrong(f"cannot be shown: {error}")
        except _NoReference as error:
            failed, verdict = True, wrong(f"the reference cannot be shown: {error}")
        except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
            verdict = wrong(f"cannot be read: {type(error).__name__}: {error}"[:300])
        finally:
            self._free.put(browser)
        return Looked(verdict, failure, time.monotonic() - begun, failed)
