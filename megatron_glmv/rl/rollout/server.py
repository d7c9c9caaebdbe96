"""HTTP to rollout servers: retries with growing pauses, deadlines, and errors that say which server and what to do."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_glmv.config.rl import ServerConfig
from megatron_glmv.rl.http import request

Json = dict[str, Any]
RETRIED = frozenset({408, 425, 429, 502, 503, 504})
"""Of no consequence for weights: the request was not served. 500 is an error of the server's own."""
PAUSE = 0.5
"""Seconds before the first repetition; doubled each time, at most LONGEST_PAUSE."""
LONGEST_PAUSE = 15.0
MAX_REPLY = 1 << 30


class ServerError(RuntimeError):
    """A rollout server is gone, refuses, or answers what can't be. Names the server."""


@dataclass(frozen=True)
class Server:
    """One address. Safe to use from several threads."""

    url: str
    config: ServerConfig
    sleep: Callable[[float], None] = time.sleep

    def get(self, path: str) -> Json:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Json | None = None, *, retry: bool = True, plain: bool = False) -> Json:
        """`retry=False`: what must not happen twice (a broadcast that the trainer takes part in). `plain`: the answer
        is a sentence, which is dropped."""
        return self._ask("POST", path, {} if body is None else body, retry=retry, plain=plain)

    def _ask(self, method: str, path: str, body: Json | None, *, retry: bool = True, plain: bool = False) -> Json:
        data = None if body is None else json.dumps(body).encode()
        attempts, pause, problem = (1 + self.config.retries if retry else 1), PAUSE, ""
        for attempt in range(attempts):
            if attempt:
                self.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                status, reply = request(
                    method, self.url + path, data, self._headers(), self.config.timeout_s, MAX_REPLY
                )
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status == http.client.OK:
                return {} if plain else _object(reply, f"{self.url}{path}")
            problem = f"status {status}: {_said(reply)}"
            if status not in RETRIED:
                raise ServerError(f"{self.url}{path} refuses: {problem}")
        raise ServerError(f"{self.url}{path} does not answer ({attempts} attempts, last: {problem})")

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.config.key_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self.config.key_env, '')}"
        return headers


def _object(reply: bytes, where: str) -> Json:
    if not reply.strip():
        return {}
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        raise ServerError(f"{where} answers what is no JSON: {reply[:80]!r}") from None
    return found if isinstance(found, dict) else {"": found}


def _said(reply: bytes) -> str:
    """The message in an error's body, in one line."""
    text = reply[:2000].decode("utf-8", "replace")
    try:
        body = json.loads(reply)
        found = body.get("error", body.get("detail", body.get("message", text))) if isinstance(body, dict) else text
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:500]
