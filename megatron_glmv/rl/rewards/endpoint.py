"""A question to a model's HTTP server, with one deadline over all of it and a limit on the reply's size."""

from __future__ import annotations

import http.client
import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.rl.http import request

MAX_REPLY = 1 << 20
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
PAUSE = 0.5
"""Seconds before the first repetition; doubled each time, until the deadline."""
VERSION = "/v1"


class Unavailable(Exception):
    """No answer: refused, too late, or not of the protocol."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model listens. The key is read from the environment when it is used, and written nowhere."""

    base_url: str
    """Up to and without /chat/completions: http://127.0.0.1:8000/v1."""
    model: str
    key_env: str = ""
    """Name of the environment variable that holds the key; empty: none is sent."""
    option: str = "judge"
    """Whose endpoint it is: named in errors."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
            fix = "give http://HOST:PORT/v1; a key goes into the environment"
            raise ConfigError(f"{self.option}.base_url", url.hostname, "is not the address of an endpoint", fix)
        if self.key_env and not os.environ.get(self.key_env):
            raise ConfigError(
                f"{self.option}.key_env", self.key_env, "is not set in the environment", f"export {self.key_env}=.."
            )

    def ask(self, body: dict[str, Any], seconds: float) -> str:
        """The text that the model answers. Raises Unavailable when the time is up or the answer is none."""
        return _text(self._post(f"{self.base_url.rstrip('/')}/chat/completions", body, seconds))

    def call(self, path: str, body: dict[str, Any], seconds: float) -> Any:
        """The JSON value that is answered under `path`, which begins where /v1 does. Raises Unavailable as `ask`."""
        return self._post(self.base_url.rstrip("/").removesuffix(VERSION) + path, body, seconds)

    def _post(self, url: str, body: dict[str, Any], seconds: float) -> Any:
        content = json.dumps({"model": self.model, **body}).encode()
        deadline, pause = time.monotonic() + seconds, PAUSE
        while True:
            try:
                left = deadline - time.monotonic()
                status, reply = request("POST", url, content, self._headers(), left, MAX_REPLY)
            except (OSError, http.client.HTTPException) as error:
                status, reply, problem = 503, b"", f"{type(error).__name__}"
            else:
                problem = f"status {status}"
            if status == http.client.OK:
                return _value(reply)
            if status not in RETRIED or time.monotonic() + pause >= deadline:
                late = "no answer in time, last: " if time.monotonic() + pause >= deadline else ""
                raise Unavailable(late + problem)
            time.sleep(pause)
            pause *= 2

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_env, '')}"
        return headers


def _value(reply: bytes) -> Any:
    try:
        return json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"not JSON: {type(error).__name__}") from None


def _text(reply: Any) -> str:
    try:
        text = reply["choices"][0]["message"]["content"]
    except (LookupError, TypeError) as error:
        raise Unavailable(f"not the answer of a chat: {type(error).__name__}") from None
    if not isinstance(text, str):
        raise Unavailable("not the answer of a chat: no text")
    return text
