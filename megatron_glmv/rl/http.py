"""One HTTP request with one deadline over all of it and a limit on the reply's size."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit


def request(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], seconds: float, limit: int
) -> tuple[int, bytes]:
    """(status, at most `limit` bytes of the reply). Raises OSError or http.client.HTTPException where there is none
    within `seconds`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    left = max(0.01, seconds)
    connection = kind(str(parts.hostname), parts.port, timeout=left)
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
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target or "/", body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read(limit)
    finally:
        watch.cancel()
        connection.close()


def _cut(held: socket.socket) -> None:
    with contextlib.suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)
