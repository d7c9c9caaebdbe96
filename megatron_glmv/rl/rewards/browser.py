"""Pages from a real browser, that nobody has read: no script, no network, no file, limits of time, size and memory.

Chromium, driven over a pipe by its own protocol (DevTools: Page, DOMSnapshot, Fetch), in namespaces of its own
(browser_child.py) and, inside, in its own sandbox. A page is written into an empty one, so that its origin may read
nothing; every request it makes is refused, whatever its address. Where there is no browser, or no namespace may be
made, there is no way to render unprotected: it is refused.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
WIDTH, HEIGHT, MOST_HEIGHT = 1024, 768, 4096
"""Of the window, and of the part of a page that is looked at, in pixels."""
MEMORY_MIB = 2048
"""Private memory of each of the browser's processes. 1024 is enough for a page of text."""
START_SECONDS = 60.0
"""On a busy machine; 0.5 s are usual. Not counted to a page."""
SETTLE_SECONDS = 1.0
"""Most that a page is waited for once its text is there."""
MAX_MESSAGE = 48 << 20
MAX_BLOCKS, MAX_TEXT = 200, 400
_RGB = re.compile(r"rgba?\((\d{1,3}), (\d{1,3}), (\d{1,3})(?:, ([\d.]+))?\)")
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--user-data-dir=/tmp/profile", "--disable-dev-shm-usage"),
    *("--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb", "--mute-audio"),
    *("--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-sync", "--disable-breakpad"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>"),
)


class BrowserRefused(RuntimeError):
    """There is no browser, or it cannot be shut in. The message says which."""


class Late(Exception):
    """The page was not there in time; its browser is gone."""


class Broken(Exception):
    """The browser could not show the page."""


@dataclass(frozen=True)
class Block:
    """A text of a page: where it stands (left, top, right, bottom in pixels) and its colour."""

    text: str
    box: tuple[float, float, float, float]
    colour: tuple[int, int, int]

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class Screen:
    """A page as it looks. pixels [H, W, 3] uint8, H the page's height up to MOST_HEIGHT."""

    pixels: NDArray[np.uint8]
    blocks: tuple[Block, ...]
    png: bytes


def find(path: str = "") -> str:
    """The browser at `path`, else the first of NAMES on PATH. Raises BrowserRefused."""
    for name in [path] if path else NAMES:
        if found := shutil.which(name):
            return found
    looked = path or f"any of {', '.join(NAMES)}"
    raise BrowserRefused(f"no browser: {looked} is not there; install chromium, or name one")


@functools.cache
def check(path: str = "") -> None:
    """Starts one and looks at a page, once a process. Raises BrowserRefused."""
    with contextlib.closing(Browser(path)) as browser:
        try:
            screen = browser.shoot("<p>tried</p>", START_SECONDS)
        except (Late, Broken) as error:
            raise BrowserRefused(f"{find(path)} does not work here: {error}") from None
    if [block.text for block in screen.blocks] != ["tried"]:
        raise BrowserRefused(f"{find(path)} shows another page than the one it was given")


class Browser:
    """One browser with one page at a time. It starts with the first, and again after one that it did not survive."""

    def __init__(self, path: str = "", memory_mib: int = MEMORY_MIB) -> None:
        self._path, self._memory = path, memory_mib
        self._process: subprocess.Popen[bytes] | None = None
        self._inbox = self._outbox = -1
        self._buffer, self._number = b"", 0
        self._deadline, self._loaded = 0.0, False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def shoot(self, html: str, seconds: float) -> Screen:
        """Raises Late, Broken, BrowserRefused."""
        try:
            self.start()
            self._deadline = time.monotonic() + seconds
            return self._shoot(html)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Nothing where it runs already. Raises as `shoot` does."""
        if self._process is not None:
            return
        try:
            self._deadline = time.monotonic() + START_SECONDS
            self._start()
            self._call("Browser.getVersion")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # the process in front ends the browser and waits for it
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
        for descriptor in (self._inbox, self._outbox):
            os.close(descriptor)
        self._buffer = b""

    def _start(self) -> None:
        browser = find(self._path)
        theirs_in, self._inbox = os.pipe()
        self._outbox, theirs_out = os.pipe()
        numbers = [str(theirs_in), str(theirs_out), str(self._memory << 20)]
        try:
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", _inside(), *numbers, browser, *FLAGS],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs_in, theirs_out),
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": "/tmp"},  # noqa: S108
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        os.set_blocking(self._inbox, False)
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)

    def _shoot(self, html: str) -> Screen:
        context = self._call("Target.createBrowserContext")["browserContextId"]
        window = {"url": "about:blank", "browserContextId": context, "width": WIDTH, "height": HEIGHT}
        target = self._call("Target.createTarget", window)["targetId"]
        page = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setScriptExecutionDisabled", {"value": True}, page)
        self._call("Fetch.enable", {"patterns": [{"urlPattern": "*"}]}, page)
        self._call("Emulation.setDeviceMetricsOverride", size, page)
        frame = self._call("Page.getFrameTree", {}, page)["frameTree"]["frame"]["id"]
        self._call("Page.enable", {}, page)
        self._loaded = False
        self._call("Page.setDocumentContent", {"frameId": frame, "html": html}, page)
        self._settle()
        seen = self._call("DOMSnapshot.captureSnapshot", {"computedStyles": ["color", "visibility", "opacity"]}, page)
        height = float(seen["documents"][0].get("contentHeight", HEIGHT))
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(MOST_HEIGHT, max(HEIGHT, int(height))), "scale": 1}
        shot = {"format": "png", "clip": clip, "captureBeyondViewport": True}
        png = base64.b64decode(self._call("Page.captureScreenshot", shot, page)["data"])
        self._call("Target.disposeBrowserContext", {"browserContextId": context})
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.width != WIDTH or image.height > MOST_HEIGHT:
                raise Broken(f"a picture of {image.width} x {image.height}")
            pixels = np.asarray(image.convert("RGB"))
        return Screen(pixels, _blocks(seen, clip["height"]), png)

    def _settle(self) -> None:
        """Wait until what the page asked for is refused: a style sheet that is missing holds the picture up."""
        until, whole = time.monotonic() + SETTLE_SECONDS, self._deadline
        self._deadline = min(until, whole)
        try:
            while not self._loaded:
                self._notice(self._receive())
        except Late:
            if time.monotonic() >= whole:
                raise
        finally:
            self._deadline = whole

    def _call(self, method: str, given: Mapping[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        """The result of one command; requests that the page makes meanwhile are refused."""
        number = self._send(method, given, session)
        while True:
            message = self._receive()
            if message.get("id") == number:
                if "error" in message:
                    raise Broken(f"{method}: {str(message['error'].get('message'))[:200]}")
                result: dict[str, Any] = message["result"]
                return result
            self._notice(message)

    def _notice(self, message: Mapping[str, Any]) -> None:
        """What the browser tells of itself."""
        if message.get("method") == "Fetch.requestPaused":
            asked = message["params"]
            # a page that leaves itself stays: of any other refusal the browser would show a page of its own
            reason = "Aborted" if asked.get("resourceType") == "Document" else "BlockedByClient"
            refused = {"requestId": asked["requestId"], "errorReason": reason}
            self._send("Fetch.failRequest", refused, message.get("sessionId", ""))
        elif message.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif message.get("method") in ("Inspector.targetCrashed", "Target.targetCrashed"):
            raise Broken("the page broke the browser (its memory, or a crash)")

    def _send(self, method: str, given: Mapping[str, Any] | None, session: str) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": dict(given or {})}
        left = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while left:
            _, ready, _ = select.select([], [self._inbox], [], self._patience())
            if not ready:
                raise Late("no answer in time")
            try:
                left = left[os.write(self._inbox, left[: 1 << 16]) :]
            except BrokenPipeError:
                raise Broken(self._last_words()) from None
        return self._number

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._outbox], [], [], self._patience())
            if not ready:
                raise Late("no answer in time")
            piece = os.read(self._outbox, 1 << 20)
            if not piece or len(self._buffer) > MAX_MESSAGE:
                raise Broken(self._last_words() if not piece else "a message without end")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def _patience(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _last_words(self) -> str:
        assert self._process is not None and self._process.stderr is not None
        said = (self._process.stderr.read() or b"").decode("utf-8", "replace").strip().splitlines()
        return f"the browser ended: {said[-1][:200] if said else 'without a word'}"


@functools.cache
def _inside() -> str:
    return (Path(__file__).parent / "browser_child.py").read_text(encoding="utf-8")


def _blocks(seen: Mapping[str, Any], height: float) -> tuple[Block, ...]:
    """Visible texts of the page itself, in its order."""
    strings, layout = seen["strings"], seen["documents"][0]["layout"]
    found = []
    for text, (x, y, w, h), style in zip(layout["text"], layout["bounds"], layout["styles"], strict=True):
        said = " ".join(strings[text].split())[:MAX_TEXT] if text >= 0 else ""
        if not said or len(style) != 3:
            continue
        colour, visible, opacity = (strings[i] if i >= 0 else "" for i in style)
        rgb = _RGB.fullmatch(colour)
        box = (max(0.0, x), max(0.0, y), min(float(WIDTH), x + w), min(height, y + h))
        shown = visible == "visible" and opacity != "0" and rgb is not None and rgb[4] != "0"
        if shown and rgb and box[0] < box[2] and box[1] < box[3]:
            found.append(Block(said, box, (int(rgb[1]), int(rgb[2]), int(rgb[3]))))
        if len(found) == MAX_BLOCKS:
            break
    return tuple(found)
