"""What is asked of rollout servers and what is made of their answers, without a server of their kind: failures over a
real HTTP server, requests against SGLang's own classes, pixels as vLLM's format has them, weights from every layout.
tests/vllm asks a real vLLM."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.answering import make_answering_run
from helpers.ranks import run_ranks
from PIL import Image

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.rl import ServerConfig
from megatron_glmv.config.schema import Config
from megatron_glmv.data.template import GLM45V
from megatron_glmv.inference.load import Loaded, load_for_inference
from megatron_glmv.rl.rollout.broadcast import empty_bytes, flat_bytes, from_bytes
from megatron_glmv.rl.rollout.contract import ForceAnswer, Request
from megatron_glmv.rl.rollout.placement import hosts, server_urls
from megatron_glmv.rl.rollout.remote import Question, RemoteEngine, Said
from megatron_glmv.rl.rollout.server import Server, ServerError
from megatron_glmv.rl.rollout.sglang import SGLang
from megatron_glmv.rl.rollout.vllm import VLLM

FIELDS = json.loads((Path(__file__).parent / "sglang_0_5_23.json").read_text())
"""Fields of SGLang 0.5.23's request classes: name, annotation, whether it has to be given; read off its wheel."""


class Scripted(ThreadingHTTPServer):
    daemon_threads = True
    answers: list[tuple[int, bytes]]
    asked: int = 0


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked += 1
        status, reply = self.server.answers[min(self.server.asked, len(self.server.answers)) - 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def client(server: Scripted, **options: Any) -> tuple[Server, list[float]]:
    pauses: list[float] = []
    config = ServerConfig(**{"timeout_s": 5.0, **options})
    return Server(f"http://127.0.0.1:{server.server_address[1]}", config, pauses.append), pauses


def test_what_was_not_served_is_asked_again_with_growing_pauses(scripted: Scripted) -> None:
    scripted.answers = [(503, b""), (429, b""), (200, b'{"a": 1}')]
    server, pauses = client(scripted)
    assert server.post("/x") == {"a": 1} and pauses == [0.5, 1.0] and scripted.asked == 3


@pytest.mark.parametrize(
    ("answers", "said", "asked"),
    [
        ([(503, b"")], "does not answer (3 attempts, last: status 503", 3),
        ([(400, b'{"error": {"message": "no such field"}}')], "refuses: status 400: no such field", 1),
        ([(500, b'{"detail": "expert 4 of 56"}')], "refuses: status 500: expert 4 of 56", 1),
        ([(200, b"<html>")], "answers what is no JSON", 1),
    ],
)
def test_failures_name_the_server_and_what_it_said(
    scripted: Scripted, answers: list[tuple[int, bytes]], said: str, asked: int
) -> None:
    scripted.answers = answers
    server, _ = client(scripted, retries=2)
    with pytest.raises(ServerError) as failed:
        server.post("/generate")
    assert said in str(failed.value) and server.url in str(failed.value) and scripted.asked == asked


def test_what_must_not_happen_twice_is_not_asked_twice(scripted: Scripted) -> None:
    scripted.answers = [(503, b""), (200, b"{}")]
    server, _ = client(scripted)
    with pytest.raises(ServerError):
        server.post("/update_weights", retry=False)
    assert scripted.asked == 1


def test_a_server_that_is_gone_is_named(scripted: Scripted) -> None:
    server, pauses = client(scripted, retries=1)
    gone = Server("http://127.0.0.1:1", server.config, pauses.append)
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1/health does not answer \(2 attempts.*refused"):
        gone.get("/health")


@pytest.mark.parametrize(
    ("served", "paths", "said"),
    [
        (["other"], {}, "serves other, rl.server.model is 'policy'"),
        (["policy"], {"/pause": {}}, "--enable-scale-out"),
        (["policy"], {"/inference/v1/generate": {}}, "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_vllm_that_lacks_something_is_told_what(
    scripted: Scripted, served: list[str], paths: dict[str, Any], said: str
) -> None:
    models = json.dumps({"data": [{"id": name} for name in served]}).encode()
    scripted.answers = [(200, models), (200, json.dumps({"paths": paths}).encode())]
    server, _ = client(scripted)
    with pytest.raises(ServerError, match=said):
        VLLM("policy", tiny.VISION).check(server, "distributed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answering_run(tmp_path_factory.mktemp("servers")).parent.parent


@pytest.fixture(scope="module")
def loaded(run: Path) -> Iterator[Loaded]:
    with load_for_inference(run) as loaded:
        yield loaded


def request_of(loaded: Loaded, run: Path, *media: str, numbers: tuple[int, ...] = (0, 1)) -> Request:
    kinds = [("video" if name.endswith("webm") else "image", str(run / "data" / "media" / name)) for name in media]
    content = [*({"type": kind, kind: path} for kind, path in kinds), {"type": "text", "text": "Which?"}]
    return Request("q", loaded.prompts.build({"id": "q", "messages": [{"role": "user", "content": content}]}), numbers)


def question_of(loaded: Loaded, request: Request) -> Question:
    files = loaded.engine.features.files
    pixels = dict(zip([m.key for m in request.prompt.media], files.decode(list(request.prompt.media)), strict=True))
    assert all(isinstance(one, torch.Tensor) for one in pixels.values())
    return Question(request.prompt, pixels, (), 4, 8, 77, False, (3, 5))  # type: ignore[arg-type]


class Faulty:
    """A dialect whose answers are given to it."""

    def __init__(self, *answers: list[Said] | ServerError) -> None:
        self.answers, self.questions, self.servers = list(answers), [], []  # type: ignore[var-annotated]

    def ask(self, server: Server, question: Question) -> list[Said]:
        self.questions.append(question)
        self.servers.append(server.url)
        answer = self.answers[min(len(self.questions), len(self.answers)) - 1]
        if isinstance(answer, ServerError):
            raise answer
        return answer


def engine_of(loaded: Loaded, dialect: Any, *urls: str) -> RemoteEngine:
    config = ServerConfig(in_flight=1)
    servers = [Server(url, config) for url in urls or ("http://one:1",)]
    files = loaded.engine.features.files
    made = RemoteEngine(dialect, servers, loaded.engine.tokenizer, files, ("<|user|>",), config, 0)
    assert len(made.stop_ids) == 1
    return made


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said((7, 8), (-1.0,), "length"), "1 log-probabilities for 2 tokens"),
        (Said((7, 8), (-1.0, float("nan")), "length"), "log-probabilities that are none"),
        (Said((7, 8), (-1.0, 0.5), "length"), "log-probabilities that are none"),
        (Said((7, 8), (-1.0, -1.0), "stop"), "ends by 'stop' with token 8"),
        (Said((7,), (-1.0,), "length"), "1 of 2 tokens and calls it 'length'"),
        (Said((7, 8, 9), (-1.0,) * 3, "length"), "3 tokens where 1 to 2 were asked for"),
        (Said((), (), "stop"), "0 tokens where"),
    ],
)
def test_an_answer_of_another_shape_stops_the_run(loaded: Loaded, run: Path, said: Said, message: str) -> None:
    engine = engine_of(loaded, Faulty([said, said]))
    with pytest.raises(ServerError, match="http://one:1 gave") as failed:
        engine.roll([request_of(loaded, run)], 2, 0)
    assert message in str(failed.value)


def test_the_next_server_is_asked_where_one_does_not_answer(loaded: Loaded, run: Path) -> None:
    good = [Said((7, 8), (-1.0, -2.0), "length")] * 2
    dialect = Faulty(ServerError("http://one:1 does not answer"), good)
    rollouts = engine_of(loaded, dialect, "http://one:1", "http://two:2").roll([request_of(loaded, run)], 2, 0)
    assert dialect.servers == ["http://one:1", "http://two:2"]
    assert [r.token_ids for r in rollouts] == [(7, 8)] * 2 and [r.number for r in rollouts] == [0, 1]
    dead = Faulty(ServerError("http://one:1 is gone"), ServerError("http://two:2 is gone"))
    with pytest.raises(ServerError, match="one:1 is gone; http://two:2 is gone"):
        engine_of(loaded, dead, "http://one:1", "http://two:2").roll([request_of(loaded, run)], 2, 0)


def test_thinking_past_its_budget_is_ended_and_goes_on(loaded: Loaded, run: Path) -> None:
    tokenizer = loaded.engine.tokenizer
    force = ForceAnswer.of(tokenizer, GLM45V, 3)
    (stop,) = engine_of(loaded, None).stop_ids
    open_end, closed = Said((7, 8, 9), (-1.0,) * 3, "length"), Said((7, 8, force.tokens[0]), (-1.0,) * 3, "length")
    done = Said((7, stop), (-1.0,) * 2, "stop")
    rest = Said((11, stop), (-0.5, -0.25), "stop")
    dialect = Faulty([open_end, closed, done], [rest])
    request = request_of(loaded, run, numbers=(4, 5, 6))
    first, second, third = engine_of(loaded, dialect).roll([request], 10, 0, force=force)
    size = len(force.tokens)
    assert first.token_ids == (7, 8, 9, *force.tokens, 11, stop) and first.forced
    assert first.sampled == (True,) * 3 + (False,) * size + (True,) * 2 and first.logprobs[-2:] == (-0.5, -0.25)
    assert second.token_ids == (7, 8, force.tokens[0], 11, stop) and not second.forced
    assert third.token_ids == (7, stop) and third.finish == "stop"
    asked = dialect.questions
    assert [q.count for q in asked] == [3, 1, 1] and [q.most for q in asked] == [3, 7 - size, 7]
    assert asked[1].token_ids == [*request.prompt.input_ids.tolist(), 7, 8, 9, *force.tokens]
    assert len({q.seed for q in asked}) == 3


def read_message_pack(data: memoryview) -> tuple[Any, memoryview]:
    """A reader of the whole of MessagePack would be longer; this one knows what is written."""
    kind, data = data[0], data[1:]
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], data
    if kind == 0xD3:
        return struct.unpack(">q", data[:8])[0], data[8:]
    count, data = struct.unpack(">I", data[:4])[0], data[4:]
    if kind == 0xDB:
        return bytes(data[:count]).decode(), data[count:]
    if kind == 0xC9:
        return (data[0], bytes(data[1 : 1 + count])), data[1 + count :]
    items = []
    for _ in range(count * (2 if kind == 0xDF else 1)):
        item, data = read_message_pack(data)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == 0xDF else items), data


def test_vllm_gets_the_patches_that_training_sees(loaded: Loaded, run: Path) -> None:
    request = request_of(loaded, run, "c.png", "v.webm", "a.png")
    question = question_of(loaded, request)
    body = VLLM("policy", loaded.engine.features.files.vision).request(question)
    features, grids = body["features"], [m.plan.grid for m in request.prompt.media]
    assert [grid.t for grid in grids] == [1, 4, 1] and len(features["mm_hashes"]["image"]) == 6
    covered = [
        place
        for span in features["mm_placeholders"]["image"]
        for place in range(span["offset"], span["offset"] + span["length"])
    ]
    assert covered == request.prompt.visual_positions.tolist() and body["token_ids"] == question.token_ids
    pixels, shapes = [], []
    for data in features["kwargs_data"]["image"]:
        item, rest = read_message_pack(memoryview(base64.b64decode(data)))
        (dtype, shape, (code, raw)), field = item["pixel_values"]["data"], item["pixel_values"]["field"]
        assert not rest and (dtype, code) == ("uint8", 3) and field[1]["slices"] == [[0, shape[0], None]]
        pixels.append(np.frombuffer(raw, np.uint8).reshape(shape))
        shapes.append(np.frombuffer(item["image_grid_thw"]["data"][2][1], np.int64).tolist())
    sent = torch.cat([question.pixels[m.key] for m in request.prompt.media]).numpy()
    assert (np.concatenate(pixels) == sent).all()
    assert shapes == [[1, grid.h, grid.w] for grid in grids for _ in range(grid.t)]
    params = body["sampling_params"]
    assert params["logprobs"] == 0 and params["n"] == 4 and params["stop_token_ids"] == [3, 5]


def test_sglang_knows_every_field_that_it_is_sent(loaded: Loaded, run: Path, scripted: Scripted) -> None:
    """Against the classes of the pinned wheel; not against a running server."""
    dialect, vision = SGLang("", loaded.engine.features.files.vision), loaded.engine.features.files.vision
    question = question_of(loaded, request_of(loaded, run, "c.png", "a.png"))
    body = dialect.request(question)
    bodies: list[tuple[str, dict[str, Any]]] = [("GenerateReqInput", body), ("SamplingParams", body["sampling_params"])]
    sent: list[dict[str, Any]] = []
    server, _ = client(scripted)
    recorded = replace(server)
    object.__setattr__(recorded, "post", lambda path, body=None, **_: sent.append(body or {}) or {"success": True})
    dialect.pause(recorded)
    dialect.reload(recorded, "/weights/1", "1")
    dialect.checksums(recorded)
    names = ("PauseGenerationReqInput", "UpdateWeightFromDiskReqInput", "CheckWeightsReqInput")
    bodies += list(zip(names, sent, strict=True))
    for name, given in bodies:
        known = FIELDS["classes"][name]
        assert set(given) <= set(known), name
        assert {field for field, about in known.items() if about["required"]} <= set(given), name
    ids, visual = question.token_ids, set(question.prompt.visual_positions.tolist())
    placeholder = ids[min(visual)]
    assert body["input_ids"].count(placeholder) == 2
    assert [t for t in body["input_ids"] if t != placeholder] == [t for i, t in enumerate(ids) if i not in visual]
    for medium, url in zip(question.prompt.media, body["image_data"], strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
        from megatron_glmv.data.patches import patchify

        assert (patchify(torch.from_numpy(shown.copy())[None], vision) == question.pixels[medium.key]).all()
    with pytest.raises(ServerError, match="video"):
        dialect.request(question_of(loaded, request_of(loaded, run, "v.webm")))


def test_where_servers_are() -> None:
    assert hosts("a[003-004,9],b1,c[1-2]x[8-9]") == ["a003", "a004", "a9", "b1", "c1x8", "c1x9", "c2x8", "c2x9"]
    nothing: dict[str, str] = {}
    slurm = {"SLURM_JOB_NODELIST_HET_GROUP_1": "n[1-2]"}
    assert server_urls(ServerConfig(port=9), slurm) == ("http://n1:9", "http://n2:9")
    given = {**slurm, "GLMV_ROLLOUT_URLS": "http://r:1/, http://r:1"}
    assert server_urls(ServerConfig(), given) == ("http://r:1",)
    assert server_urls(ServerConfig(urls=("https://x:1",)), given) == ("https://x:1",)
    for urls, environment in (((), nothing), (("r:1",), nothing), (("http://u:p@r",), nothing)):
        with pytest.raises(ConfigError):
            server_urls(ServerConfig(urls=urls), environment)


def test_a_bucket_comes_apart_as_it_was_put_together() -> None:
    tensors = [torch.arange(3.0), torch.ones(2, 3, dtype=torch.bfloat16), torch.arange(5), torch.zeros(0)]
    dtypes, shapes = [str(t.dtype).removeprefix("torch.") for t in tensors], [list(t.shape) for t in tensors]
    flat = flat_bytes(tensors)
    assert flat.shape == empty_bytes(dtypes, shapes, torch.device("cpu")).shape
    assert all(torch.equal(a, b) for a, b in zip(from_bytes(flat, dtypes, shapes), tensors, strict=True))


def streamed(config: Config) -> list[tuple[str, Any]]:
    """Names and tensors on the first rank, in buckets of 8 KiB."""
    import torch.distributed as dist

    from megatron_glmv.checkpoint.hf.mapping import name_mapping
    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.parallel.topology import Topology
    from megatron_glmv.rl.rollout.streaming import TrainedTensors

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    device = torch.device("cpu")
    chunks = build_model(config, groups, backend="torch", device=device)
    tensors = TrainedTensors(chunks, name_mapping(config.model), groups, device)
    buckets = list(tensors.buckets(8192))
    assert all(sum(t.nbytes for _, t in bucket) <= 8192 or len(bucket) == 1 for bucket in buckets)
    assert len(buckets) > 5
    return [(name, tensor.numpy()) for bucket in buckets for name, tensor in bucket]


@pytest.mark.slow
def test_weights_of_every_layout_stream_as_those_of_one_process() -> None:
    from megatron_glmv.checkpoint.hf.mapping import name_mapping

    (whole,) = run_ranks(streamed, 1, tiny.config())
    assert [name for name, _ in whole] == list(name_mapping(tiny.MODEL).theirs)
    for layout in ({"tensor": 2}, {"pipeline": 2}, {"data": 2, "expert": 2}):
        first, second = run_ranks(streamed, 2, tiny.config(**layout))
        assert not second and [n for n, _ in first] == [n for n, _ in whole], layout
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, whole, strict=True)), layout


class Endpoints:
    """Servers that do as they are told, but for one call."""

    def __init__(self, failing: str, error: Exception) -> None:
        self.failing, self.error, self.calls = failing, error, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(server: Server, *_: Any) -> Any:
            self.calls.append(name)
            if name == self.failing:
                raise self.error
            return {"w": server.url if self.failing == "differ" else "same"} if name == "checksums" else None

        return call


def failing_updates(config: Config, exchange: str) -> list[tuple[str, str, list[str]]]:
    """(class of the error, its words, calls to the servers) of four updates of two servers; the last one succeeds."""
    import torch.distributed as dist

    from megatron_glmv.checkpoint.hf.mapping import name_mapping
    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.parallel.topology import Topology
    from megatron_glmv.rl.rollout.streaming import TrainedTensors
    from megatron_glmv.rl.rollout.update import ServerWeights

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    device = torch.device("cpu")
    chunks = build_model(config, groups, backend="torch", device=device)
    tensors = TrainedTensors(chunks, name_mapping(config.model), groups, device)
    settings = ServerConfig(update="disk", bucket_mb=1)
    servers = [Server(f"http://s{n}", settings) for n in range(2)]
    found = []
    for failing, error in (
        ("pause", ServerError("http://s0 is gone")),
        ("reload", OSError("disk is full")),
        ("differ", ServerError("")),
        ("", ServerError("")),
    ):
        endpoints = Endpoints(failing, error)
        keeper = ServerWeights(endpoints, servers, tensors, settings, Path(exchange), device)
        said = ("", "")
        try:
            keeper.sync()
            keeper.verify()
        except (ServerError, OSError) as failed:
            said = (type(failed).__name__, str(failed))
        found.append((*said, endpoints.calls))
    return found


def test_every_rank_says_why_an_update_failed(tmp_path: Path) -> None:
    """And the ranks stay in step: an update succeeds after a server, the disk and the comparison have failed."""
    first, second = run_ranks(failing_updates, 2, tiny.config(tensor=2), str(tmp_path))
    differ = "http://s1 and http://s0 differ in w"
    assert [said[:2] for said in first] == [
        ("ServerError", "http://s0 is gone"),
        ("OSError", "disk is full"),
        ("ServerError", differ),
        ("", ""),
    ]
    assert [said[:2] for said in second] == [
        ("ServerError", "http://s0 is gone"),
        ("ServerError", "OSError: disk is full"),
        ("ServerError", differ),
        ("", ""),
    ]
    once = ["pause", "reload", "checksums", "resume", "checksums"]
    assert [list(dict.fromkeys(calls)) for *_, calls in first] == [once[:1], once[:2], once[:3], once[:4]]
    assert not any(calls for *_, calls in second), "the first rank alone talks"
