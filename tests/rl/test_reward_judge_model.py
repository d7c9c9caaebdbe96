"""The judge model over a real HTTP server: votes, memory, injected scores, servers that fail or drip."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.rl import JudgeConfig
from megatron_glmv.rl.advantage import group_advantages
from megatron_glmv.rl.rewards.endpoint import Endpoint
from megatron_glmv.rl.rewards.judge_model import JudgeModel, read_score
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item
from megatron_glmv.stages.rlcs import judge_model


class Server(ThreadingHTTPServer):
    daemon_threads = True
    mode = "agree"
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        if self.server.mode == "error":
            self.send_error(400)
            return
        score: float = 0 if self.server.mode == "split" and body["seed"] == 0 else 1
        if self.server.mode == "graded":
            score = body["messages"][-1]["content"].count("zork") / 4
        reply = json.dumps({"choices": [{"message": {"content": f"It fits.\nScore: {score}"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        if self.server.mode == "drip":
            for byte in reply:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


def model(server: Server, **more: Any) -> JudgeModel:
    return JudgeModel(Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "m"), **{"seconds": 1.0, **more})


ITEM = Item("vqa", "<|begin_of_box|>a feline<|end_of_box|>", "cat")


def test_votes_are_counted_and_remembered(server: Server, tmp_path: Path) -> None:
    server.mode, cache = "split", str(tmp_path / "votes.jsonl")
    for asked in (3, 3):  # the second judge reads the file
        with Judge(model=model(server, cache=cache)) as judge:
            judgement = judge.judge([ITEM])[0]
            assert (judgement.reward, judgement.verifier, judgement.failed) == (1.0, "vqa+llm", False)
            assert judge.health.of("vqa").disagreed == 1
        assert server.asked == asked


def test_two_equal_votes_are_enough(server: Server) -> None:
    with Judge(model=model(server)) as judge:
        assert judge.judge([ITEM])[0].reward == 1.0
    assert server.asked == 2


@pytest.mark.parametrize("mode", ["error", "drip"])
def test_no_answer_is_no_verdict(server: Server, mode: str) -> None:
    server.mode = mode
    begun = time.monotonic()
    with Judge(model=model(server, votes=1)) as judge:
        judgement = judge.judge([ITEM])[0]
    assert (judgement.reward, judgement.failed) == (0.0, True)
    assert time.monotonic() - begun < 5


def test_only_the_last_line_is_a_score() -> None:
    assert read_score("Score: 1\nbut no\nScore: 0", False) == 0.0
    assert read_score("Score: 1\nand more", False) is None
    assert read_score("Score: 0.5", False) is None
    assert read_score("**Score: 0.5**", True) == 0.5
    assert read_score("Score: 7", True) is None


def test_prompts_without_a_verifier_are_rewarded_beside_those_with_one(server: Server) -> None:
    """The judge's grades as a run's options ask for them; within a group they weigh as any reward does."""
    server.mode = "graded"
    options = JudgeConfig(url=f"http://127.0.0.1:{server.server_address[1]}/v1", model="m", votes=1, seconds=2.0)
    answers = ["zork", "zork zork zork", "nothing", "zork zork"]
    boxed = [f"<|begin_of_box|>{number}<|end_of_box|>" for number in (3, 4)]
    items = [Item("open_ended", text, None) for text in answers] + [Item("counting", text, "3") for text in boxed]
    with Judge(model=judge_model(options)) as judge:
        judge.require({"open_ended", "counting"})
        rewards = [one.reward for one in judge.judge(items)]
    assert rewards == [0.25, 0.75, 0.0, 0.5, 1.0, 0.0]
    advantages = group_advantages(rewards[:4])
    assert advantages.mean() == pytest.approx(0) and advantages.std() == pytest.approx(1)
    assert judge_model(JudgeConfig()) is None
    with pytest.raises(ConfigError):
        judge_model(JudgeConfig(url="127.0.0.1", model="m"))


def test_open_ended_needs_a_model(server: Server) -> None:
    item = Item("open_ended", "a poem", None)
    with Judge() as judge, pytest.raises(ConfigError, match="judge model"):
        judge.judge([item])
    with Judge(model=model(server)) as judge:
        assert judge.judge([item])[0].reward == 1.0
