"""`glmv generate` and `glmv eval` as typed: that their options reach the functions behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.answering import make_answering_run
from typer.testing import CliRunner

from megatron_glmv.cli.app import app
from megatron_glmv.config.errors import ConfigError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answering_run(tmp_path_factory.mktemp("runs") / "one").parent.parent


def answer(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_generate_takes_pictures_clips_and_sampling_from_the_command_line(run_dir: Path) -> None:
    media = run_dir / "data" / "media"
    ask = ("--ckpt", run_dir, "--prompt", "Which colour is it?", "--max-new-tokens", 6)
    plain = answer(*ask, "--image", media / "a.png")
    assert plain and plain == answer(*ask, "--image", media / "a.png")
    others = [
        answer(*ask, "--image", media / "c.png", "--image", media / "b.png"),
        answer(*ask, "--video", media / "v.webm"),
        answer(*ask, "--image", media / "a.png", "--thinking"),
    ]
    assert any(other != plain for other in others)
    sampled = [answer(*ask, "--image", media / "a.png", "--temperature", 2.0, "--seed", seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert answer(*ask, "--image", media / "a.png", "--temperature", 2.0, "--top-p", 1e-6) == plain  # the likeliest
    with pytest.raises(ConfigError, match="temperature"):
        answer(*ask, "--temperature", -1)


def test_eval_and_compare_from_the_command_line(run_dir: Path, tmp_path: Path) -> None:
    media = run_dir / "data" / "media"
    lines = []
    for number, name in enumerate(["a.png", "b.png", "c.png"]):
        parts = [{"type": "image", "image": str(media / name)}, {"type": "text", "text": "Which colour is it?"}]
        asked = {"id": str(number), "task": "colour", "answer": "red", "choices": ["red", "blue"]}
        lines.append(json.dumps({**asked, "messages": [{"role": "user", "content": parts}]}) + "\n")
    data = tmp_path / "held.jsonl"
    data.write_text("".join(lines))
    for out, extra in {"a": ["--limit", "2"], "b": ["--shuffle-media"]}.items():
        options = ["--ckpt", run_dir, "--data", data, "--out", tmp_path / out, "--max-new-tokens", 2, *extra]
        done = CliRunner().invoke(app, ["eval", *map(str, options)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    results = [json.loads((tmp_path / out / "results.json").read_text()) for out in ("a", "b")]
    assert [r["overall"]["n"] for r in results] == [2, 3] and [r["shuffled"] for r in results] == [False, True]
    assert results[0]["max_new_tokens"] == 2
    done = CliRunner().invoke(app, ["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == 0 and "colour" in done.output
