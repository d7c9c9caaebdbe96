"""One question to an OpenAI-compatible endpoint, with one deadline over all of it and a limit on the reply's size."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from megatron_glmv.config.errors import ConfigError

MAX_REPLY = 1 << 20
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
PAUSE = 0.5
"""Seconds before the first repetition; doubled each time, until the deadline."""


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

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
            fix = "give http://HOST:PORT/v1; a key goes into the environment"
            raise ConfigError("judge.base_url", url.hostname, "is not the address of an endpoint", fix)
        if self.key_env and not os.environ.get(self.key_env):
            raise ConfigError(
                "judge.key_env", self.key_env, "is not set in the environment", f"export {self.key_env}=.."
            )

    def ask(self, body: dict[str, Any], seconds: float) -> str:
        """The text that the model answers. Raises Unavailable when the time is up or the answer is none."""
        deadline, pause = time.monotonic() + seconds, PAUSE
        while True:
            try:
                status, reply = self._post(json.dumps({"model": self.model, **body}).encode(), deadline)
            except (OSError, http.client.HTTPException) as error:
                status, reply, problem = 503, b"", f"{type(error).__name__}"
            else:
                problem = f"status {status}"
            if status == http.client.OK:
                return _text(reply)
            if status not in RETRIED or time.monotonic() + pause >= deadline:
                late = "no answer in time, last: " if time.monotonic() + pause >= deadline else ""
                raise Unavailable(late + problem)
            time.sleep(pause)
            pause *= 2

    def _post(self, body: bytes, deadline: float) -> tuple[int, bytes]:
        url = urlsplit(self.base_url)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        left = max(0.01, deadline - time.monotonic())
        connection = kind(str(url.hostname), url.port, timeout=left)
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_env, '')}"
        try:
            connection.connect()
            # a socket's timeout restarts with every byte: a server that drips would never run into it. The socket is
            # held here because the connection lets go of it as soon as the head of an HTTP/1.0 answer has come
            watch = threading.Timer(left, _cut, (connection.sock,))
            watch.daemon = True
            watch.start()
        except OSError:
            connection.close()
            raise
        try:
            connection.request("POST", f"{url.path.rstrip('/')}/chat/completions", body, headers)
            response = connection.getresponse()
            return response.status, response.read(MAX_REPLY)
        finally:
            watch.cancel()
            connection.close()


def _cut(held: socket.socket) -> None:
    with contextlib.suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)


def _text(reply: bytes) -> str:
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Unavailable(f"not the answer of a chat: {type(error).__name__}") from None
    if not isinstance(text, str):
        raise Unavailable("not the answer of a chat: no text")
    return text
