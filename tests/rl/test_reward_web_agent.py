"""The web agent's table: final answers and actions; what is right, wrong, malformed and hostile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from megatron_glmv.rl.rewards.endpoint import Endpoint
from megatron_glmv.rl.rewards.judge_model import JudgeModel
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item

LINES = "Click [3]\nType [5]; [blue shoes]\nKey; [Return]\nANSWER; [$19.99]"
STEPS = [
    {"op": "CLICK", "element": [3, "search"]},
    {"op": "TYPE", "element": "5", "value": "blue shoes"},
    {"op": "SELECT", "element": "9", "value": "Size 42"},
]
MANY = "\n".join(["Click [3]"] * 201)
TABLE: list[tuple[str, Any, dict[str, Any], float]] = [
    ("Paris", "paris", {}, 1),
    ("ANSWER; [Paris]", "Paris", {}, 1),
    ("19.99", "$19.99", {}, 1),
    ("20.01", "$19.99", {}, 0),
    ("20.01", "$19.99", {"tolerance": 0.01}, 1),
    ("Lyon", ["Paris", "Lyon"], {}, 1),
    ("no", "yes", {}, 0),
    ("the capital of France", "Paris", {}, 0),
    ("Click [3]", "Paris", {"kind": "actions"}, 0),
    ("Paris", "Paris", {"kind": "poem"}, 0),
    (LINES, LINES, {}, 1),
    (LINES.lower().replace("answer", "ANSWER"), LINES, {}, 1),
    (f"```\n{LINES}\n```", LINES, {}, 1),
    ("Type [5]; [blue shoes]\nKey; [Return]\nANSWER; [19.99]", LINES, {}, 3 / 4),
    (f"Click [8]\n{LINES}", LINES, {}, 4 / 5),
    (f"Click [8]\n{LINES}", LINES, {"whole": True}, 0),
    (LINES.replace("[3]", "[4]"), LINES, {}, 3 / 4),
    (LINES.replace("shoes", "boots"), LINES, {}, 3 / 4),
    (LINES.replace("blue shoes", "shoes blue"), LINES, {}, 1),
    (LINES.replace("19.99", "29.99"), LINES, {}, 3 / 4),
    ("\n".join(reversed(LINES.splitlines())), LINES, {}, 1 / 4),
    (LINES, LINES, {"whole": True}, 1),
    (json.dumps([STEPS[0] | {"element": "Search"}, *STEPS[1:]]), STEPS, {}, 1),
    (json.dumps([STEPS[0] | {"element": 3}, *STEPS[1:]]), json.dumps(STEPS), {}, 1),
    ("Click [3]\nType [5]; [blue shoes]\nSelect [9]; [size 42]", STEPS, {}, 1),
    (json.dumps([STEPS[0] | {"element": 7}, *STEPS[1:]]), STEPS, {}, 2 / 3),
    (json.dumps(STEPS), STEPS, {}, 0),  # an action that names every element
    (json.dumps([{"op": "CLICK"}]), STEPS, {}, 0),
    (json.dumps([{"op": "CLICK", "element": 3, "why": "x"}]), STEPS, {}, 0),
    (json.dumps([{"op": "CLICK", "element": {"a": 1}}]), STEPS, {}, 0),
    ("[" * 3000, STEPS, {}, 0),
    ("[]", STEPS, {}, 0),
    ("do what is right", STEPS, {}, 0),
    (MANY, LINES, {}, 0),
    ("Click [" + "]" * 5000, LINES, {}, 0),
    ("Type [5]; [" + "[" * 9000, LINES, {}, 0),
    ("A" * 90_000, LINES, {}, 0),
    ("ANSWER; [__import__('os').system('true')]", LINES, {}, 0),
]


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_table(number: int) -> None:
    final, answer, extra, reward = TABLE[number]
    with Judge() as judge:
        (found,) = judge.judge([Item("web_agent", f"<|begin_of_box|>{final}<|end_of_box|>", answer, extra)])
    assert found.reward == pytest.approx(reward), found
    assert found.reason and not found.failed


class Yes(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        reply = json.dumps({"choices": [{"message": {"content": "Score: 1"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Yes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_open_is_asked_of_the_judge(url: str) -> None:
    """Answers in other words, alone or at the end of actions; nothing that rules decide."""
    by_text = LINES.replace("$19.99", "the blue pair")
    cases = [("the capital of France", "Paris"), (by_text.replace("blue pair", "pair in blue"), by_text)]
    decided = [(LINES.replace("19.99", "29.99"), LINES), ("Click [9]", LINES)]
    Yes.asked.clear()
    with Judge(model=JudgeModel(Endpoint(url, "m"), votes=1)) as judge:
        items = [Item("web_agent", f"<|begin_of_box|>{final}<|end_of_box|>", ref) for final, ref in cases + decided]
        found = judge.judge(items)
    assert [one.verifier for one in found] == ["web_agent+llm"] * 2 + ["web_agent"] * 2
    assert [one.reward for one in found] == [1, 1, 3 / 4, 0]
    assert len(Yes.asked) == 2
