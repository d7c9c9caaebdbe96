"""A real chat endpoint on 127.0.0.1 that answers each picture with a caption of its own, and can misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class CaptionServer(ThreadingHTTPServer):
    """`script` maps an attempt's number (from 0) of one request to what happens: a status, `silence`, `nonsense` or
    `cut`; attempts without an entry are answered. Every answer is another one, as a sampling model's are."""

    daemon_threads = True

    def __init__(self, script: dict[int, int | str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script or {}
        self.text = "New words number {count} for the picture {name} with a lamp in it"
        self.seen: Counter[str] = Counter()
        self.did: Counter[int | str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: CaptionServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = hashlib.sha256(body).hexdigest()[:8]
        with self.server.lock:
            attempt = self.server.seen[name]
            self.server.seen[name] += 1
            act = self.server.script.get(attempt, 200)
            self.server.did[act] += 1
            self.server.requests.append(json.loads(body) | {"path": self.path, "key": self.headers["Authorization"]})
            count = len(self.server.requests)
        if act == "silence":
            time.sleep(2.5)
            return
        if act == "cut":
            self.connection.close()
            return
        answer = {"choices": [{"message": {"content": self.server.text.format(name=name, count=count)}}]}
        raw = b"<html>" if act == "nonsense" else json.dumps(answer).encode()
        self.send_response(act if isinstance(act, int) else 200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        with suppress(BrokenPipeError):  # who asked gave up
            self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(script: dict[int, int | str] | None = None) -> Iterator[CaptionServer]:
    server = CaptionServer(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
