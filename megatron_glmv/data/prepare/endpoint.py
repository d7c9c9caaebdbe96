"""An OpenAI-compatible chat endpoint, asked patiently: time-outs, further attempts, and answers kept on disk.

An answer once received is never asked for again, so that a step that was killed goes on with the same captions however
the model samples.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.prepare.options import RecaptionOptions
from megatron_glmv.data.prepare.work import fingerprint, write_whole
from megatron_glmv.data.types import Json

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, doubled for each further one."""
MAX_ANSWER = 1 << 20
"""Bytes."""


class EndpointError(Exception):
    """A request that failed for good; the text says how."""


class Endpoint:
    """Safe to use from several threads."""

    def __init__(self, options: RecaptionOptions, cache: Path, *, wait: Callable[[float], None] = time.sleep) -> None:
        """Raises ConfigError where the named environment variable is not set."""
        self._options = options
        self._cache = cache
        self._wait = wait
        self._url = urlsplit(options.endpoint.rstrip("/") + "/chat/completions")
        self._headers = {"Content-Type": "application/json"}
        if options.key_variable:
            key = os.environ.get(options.key_variable)
            if not key:
                raise ConfigError("recaption.key_variable", options.key_variable, "is not set in the environment")
            self._headers["Authorization"] = f"Bearer {key}"

    def answer(self, content: list[Json]) -> str:
        """The answer to one user message. Raises EndpointError."""
        request = {"model": self._options.model, "max_tokens": self._options.max_tokens, "temperature": 0.0}
        request["messages"] = [{"role": "user", "content": content}]
        name = fingerprint(request)
        kept = self._cache / name[:2] / f"{name}.json"
        if kept.is_file():
            return str(json.loads(kept.read_bytes())["answer"])
        answer = self._ask(json.dumps(request).encode())
        write_whole(kept, json.dumps({"answer": answer}).encode())
        return answer

    def _ask(self, body: bytes) -> str:
        failed = ""
        for attempt in range(self._options.retries + 1):
            if attempt:
                self._wait(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)))
            try:
                status, raw = self._post(body)
                if status == 200:
                    return str(json.loads(raw)["choices"][0]["message"]["content"])
                failed = f"status {status}: {raw[:200].decode('utf-8', 'replace')}"
                if status not in AGAIN:
                    break
            except (OSError, http.client.HTTPException) as e:
                failed = f"{type(e).__name__}: {e}"
            except (ValueError, LookupError, TypeError) as e:
                failed = f"no chat completion came back: {type(e).__name__}"
        raise EndpointError(failed)

    def _post(self, body: bytes) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.netloc, timeout=self._options.timeout)
        try:
            connection.request("POST", self._url.path, body, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_ANSWER)
        finally:
            connection.close()
