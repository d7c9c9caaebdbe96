"""New captions from a real endpoint: how many, what is sent, what happens when it fails, stalls or talks nonsense."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from data import planted
from data.caption_server import CaptionServer, serving

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.prepare import endpoint, options, text
from megatron_glmv.data.prepare.pipeline import Preparation

COUNT = 24


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = planted.Corpus()
    for n in range(COUNT):
        made.add(f"pair-{n:02d}", planted.caption(planted.words(n)), {"0.jpg": planted.encoded(planted.picture(n))})
    made.add(
        "asked",
        planted.caption("An answer stays as it is", domain="vqa"),
        {"0.jpg": planted.encoded(planted.picture(99))},
    )
    directory = tmp_path_factory.mktemp("recaption") / "raw"
    made.write(directory, 10)
    return directory


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def prepare(raw: Path, out: Path, server: CaptionServer, *overrides: str) -> dict[str, str]:
    chosen = options.load("", [f"recaption.endpoint={server.url}", "recaption.timeout=30", *overrides])
    Preparation(raw, out, chosen).run("all")
    dataset = ShardDataset(out)
    return {dataset.entry(i).key: text.learned(dataset.conversation(i)) for i in range(len(dataset))}


def test_the_ratio_is_drawn_by_key_and_the_rest_keep_their_words(raw: Path, tmp_path: Path) -> None:
    original = {f"pair-{n:02d}": planted.words(n) for n in range(COUNT)} | {"asked": "An answer stays as it is"}
    with serving() as server:
        found = prepare(raw, tmp_path / "half", server)
        drawn = {key for key in found if found[key] != original[key]}
        print(f"ratio 0.5: {len(drawn)} of {COUNT}")
        assert drawn == {key for key in original if key != "asked" and text.draw(0, "recaption", key) < 0.5}
        assert 6 <= len(drawn) <= 18 and len(server.requests) == len(drawn)
        request = server.requests[0]
        assert request["path"] == "/v1/chat/completions" and request["key"] is None
        shown, prompt = request["messages"][0]["content"]
        kind, _, data = shown["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/jpeg"
        number = next(n for n in range(COUNT) if planted.words(n) in prompt["text"])
        assert base64.b64decode(data) == planted.encoded(planted.picture(number))
        assert prepare(raw, tmp_path / "none", server, "recaption.ratio=0") == original
        assert len(server.requests) == len(drawn)
        every = prepare(raw, tmp_path / "all", server, "recaption.ratio=1")
        assert {key for key in every if every[key] == original[key]} == {"asked"}
    dataset = ShardDataset(tmp_path / "all")
    conversation = dataset.conversation(dataset.find("pair-03"))
    assert (conversation["caption_source"], conversation["original_caption"]) == ("recaption", planted.words(3))
    figures = json.loads((tmp_path / "all" / "report.json").read_text())["steps"][-1]
    assert (figures["caption"], figures["failed"], figures["unusable"]) == (COUNT, 0, 0)


def test_failures_that_pass_are_tried_again(raw: Path, tmp_path: Path) -> None:
    with serving({0: 503, 1: "silence", 2: "cut", 3: "nonsense"}) as server:
        found = prepare(raw, tmp_path, server, "recaption.ratio=0.2", "recaption.timeout=1.5", "recaption.retries=8")
        wanted = sum(words.startswith("New words") for words in found.values())
        assert wanted
        for fault in (503, "silence", "cut", "nonsense"):
            assert server.did[fault] == wanted, "every request met every fault once"
        print(f"{wanted} captions after {server.did}")


def test_a_dead_endpoint_stops_the_step_and_answers_are_not_asked_for_twice(raw: Path, tmp_path: Path) -> None:
    with serving({0: 400}) as server:
        with pytest.raises(DataError, match=r"requests for raw-0000.tar failed.*status 400"):
            prepare(raw, tmp_path, server, "recaption.ratio=1", "recaption.retries=0")
        assert server.did[400] == 10
        found = prepare(raw, tmp_path, server, "recaption.ratio=1", "recaption.retries=1", "recaption.max_failed=1")
        assert sum(words.startswith("New words") for words in found.values()) == 10, "shard 0 had its refusals before"
        asked = len(server.requests)
        for path in (tmp_path / "prepare" / "recaption").iterdir():
            path.unlink()
        server.script = {}
        again = prepare(raw, tmp_path, server, "recaption.ratio=1")
        assert len(server.requests) - asked == COUNT - 10
        assert {key: again[key] for key in found if found[key].startswith("New")}.items() <= found.items()


def test_answers_that_break_the_rules_of_text_leave_the_original(raw: Path, tmp_path: Path) -> None:
    with serving() as server:
        server.text = "lamp and lamp and " * 30
        found = prepare(raw, tmp_path, server, "recaption.ratio=1")
    assert found["pair-05"] == planted.words(5)
    figures = json.loads((tmp_path / "report.json").read_text())["steps"][-1]
    assert (figures["caption"], figures["unusable"]) == (0, COUNT)


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        with pytest.raises(ConfigError, match="is not set"):
            prepare(raw, tmp_path, server, "recaption.key_variable=CAPTION_KEY")
        monkeypatch.setenv("CAPTION_KEY", "planted-secret")
        prepare(raw, tmp_path, server, "recaption.key_variable=CAPTION_KEY")
        assert {request["key"] for request in server.requests} == {"Bearer planted-secret"}
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"planted-secret" in p.read_bytes()]
