"""The report of a small run directory written here: well-formed, complete, asking nothing of anybody."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from PIL import Image

from megatron_glmv.data.errors import DataError
from megatron_glmv.evaluate.metrics import Graded
from megatron_glmv.evaluate.results import summarise, write
from megatron_glmv.report.chart import MAX_POINTS, Axis, Line, line_chart, short, smoothed, thin
from megatron_glmv.report.html import VOID, Markup, tag
from megatron_glmv.report.page import main
from megatron_glmv.report.record import read_run
from megatron_glmv.report.sections import SECTIONS
from megatron_glmv.report.sections.samples import choose
from megatron_glmv.report.sections.summary import duration, layout

HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what a browser would load and what a reader would read."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.scripts = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [
            str(given[name]) for name in ("src", "href", "srcset", "data", "poster", "action") if name in given
        ]
        if tag == "img":
            self.images.append(str(given["src"]))
        if "id" in given:
            self.ids.append(str(given["id"]))
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=4)
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for k in range(8):
            pixels = np.full((56, 56, 3), 20 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))


def evaluation(run: Path, name: str, shuffled: bool) -> None:
    data = run / "media" / "heldout.jsonl"
    graded, predictions = [], []
    for task, kind, right in (("colour", "image", 180), ("motion", "video", 120)):
        for i in range(200):
            ok = i < (50 if shuffled else right)
            graded.append(Graded(f"{task}{i}", task, f"tier {i % 2}", f"of {kind}s", "red", 0.25, "red", ok))
            medium = {kind: "a.png" if kind == "image" else "b.webm"}
            about = {"id": f"{task}{i}", "task": task, "prompt": f"Which {task} & why? {HOSTILE}", "media": [medium]}
            predictions.append({**about, "answer": "red", "prediction": "red" if ok else "blue<b>", "correct": ok})
    about = {"checkpoint": "ckpt", "data": str(data), "shuffled": shuffled}
    write(run / "eval" / name, {**about, **summarise(graded)}, predictions)


def make_run(run: Path, steps: int = 80, lr: float = 3e-4) -> Path:
    (run / "media").mkdir(parents=True)
    Image.new("RGB", (400, 300), (200, 30, 30)).save(run / "media" / "a.png")
    write_video(run / "media" / "b.webm")
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        known = {"step": step, "loss": 4.0 / step + 0.5, "grad_norm": 1.0, "lr": lr, "tokens": 1000 * step}
        lines.append({**known, "samples": 7 * step, "step_time_s": 0.5, "data_wait_s": 0.05})
    lines[-1] |= {"val_loss": 0.8125, "val_loss/charts": 0.9, "val_loss/clips": 0.7}
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    start = {"start": "2026-01-01T00:00:00+00:00", "step_in": 0}
    attempts = [
        {**start, "end": None, "reason": "killed without a word", "exit_code": None, "step_out": None},
        {**start, "end": "2026-01-01T00:02:05+00:00", "reason": "all steps done", "exit_code": 0, "step_out": steps},
    ]
    (run / "attempts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in attempts))
    model = {"name": "tiny_x", "text": {"layers": 4, "hidden": 128, "moe": None}, "vision": {"depth": 3, "hidden": 96}}
    parallel = {"tensor": 2, "pipeline": 2, "expert": 2, "expert_tensor": 1, "data": None, "sequence": None}
    train = {"steps": steps, "seed": 77, "global_batch": 8, "batch_until": {40: 4, 20: 2}}
    config = {"experiment": "probe", "model": model, "parallel": parallel, "train": train, "optim": {"lr": lr}}
    config["data"] = {"pack_tokens": 1536}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = run / "checkpoints" / f"step_{steps}"
    checkpoint.mkdir(parents=True)
    manifest = {"step": steps, "package_version": "9.9", "libraries": {"torch": "2.99"}}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    evaluation(run, "heldout", shuffled=False)
    evaluation(run, "heldout-shuffled", shuffled=True)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run_a")


@pytest.fixture(scope="module")
def source(run: Path) -> str:
    path = main([run])
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_the_page_asks_nothing_of_any_server(source: str, page: Page) -> None:
    assert all(load.startswith(("data:image/", "#")) for load in page.loads), page.loads
    assert not re.search(r"url\(|@import|https?://", source)
    assert "default-src 'none'" in html.unescape(source)


def test_every_section_is_there_and_linked(page: Page) -> None:
    assert page.ids == [section.anchor for section in SECTIONS if section.anchor != "rlcs"], "this run is not of RLCS"
    assert {f"#{anchor}" for anchor in page.ids} <= set(page.loads)


def test_every_file_of_sections_is_registered() -> None:
    folder = Path(__import__("megatron_glmv.report.sections", fromlist=["_"]).__file__).parent
    modules = {f"megatron_glmv.report.sections.{path.stem}" for path in folder.glob("[!_]*.py")}
    assert {type(section).__module__ for section in SECTIONS} == modules


def test_the_numbers_of_the_run_appear(page: Page) -> None:
    for expected in (
        "tiny_x: decoder of 4 layers, width 128, dense",
        "TP2 x PP2 x EP2",
        "8 packs of 1,536 tokens (2 before step 20, 4 before step 40)",
        "megatron_glmv 9.9, torch 2.99",
        "0.8125",
        "killed without a word",
        "2 min 5 s",
        "all steps done",
        "2,000",  # tokens a second: 1000 in half a second
        "10.0%",  # of the time waited for data
        "90.0%",  # colour right
        "0.87",  # above chance
        "by domain",
        "of videos",
        "tier 1",
    ):
        assert expected in page.text, expected


def test_the_control_stands_beside_the_plain_score(run: Path, page: Page) -> None:
    record = read_run(run)
    plain = next(one for one in record.evals if not one.shuffled)
    control = record.control(plain)
    assert control is not None and control.name == "heldout-shuffled"
    row = page.text.split("media shuffled")[1].split("motion")[0].split()
    assert row == ["colour", "200", "90.0%", "25.0%", "0.87", "0.80", "to", "0.91", "0.00"]
    assert "not run" not in page.text


def test_pictures_are_inside_and_a_video_is_a_strip(page: Page) -> None:
    assert len(page.images) == 3 + 3 * 6  # three questions of each task, six frames of a video
    for uri in page.images:
        picture = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
        assert max(picture.size) <= 168
    strip = [np.asarray(Image.open(io.BytesIO(base64.b64decode(u.partition(",")[2])))).mean() for u in page.images[3:9]]
    assert strip == sorted(strip) and strip[-1] - strip[0] > 100, "frames run from the first to the last"


def test_text_from_others_is_text(source: str, page: Page) -> None:
    assert page.scripts == 1
    assert HOSTILE not in source
    assert HOSTILE in page.text and "blue<b>" in page.text


def test_several_runs_share_their_charts_and_their_differences_are_listed(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "run_b", steps=60, lr=1e-3)
    text = main([run, other], tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.count("<figure") == 5 + 3
    assert "optim.lr" in page.text and "0.001" in page.text
    charts = [json.loads(match.replace("&quot;", '"')) for match in re.findall(r'data-chart="([^"]*)"', text)]
    assert [line[0] for line in charts[0]["lines"]] == ["run_a", "run_b"]
    assert charts[0]["lines"][1][2][-1] == [60, pytest.approx(4.0 / 60 + 0.5, rel=1e-3)]


def test_an_empty_directory_says_what_is_absent(tmp_path: Path) -> None:
    text = Page(main([tmp_path]).read_text(encoding="utf-8")).text
    for name in ("config.yaml is not there", "metrics.jsonl is not there", "attempts.jsonl is not there"):
        assert name in text
    assert "no committed checkpoint" in text and "Nothing was evaluated" in text and "No step was recorded" in text


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [1")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 81, "loss": Infinity, "lr": 1e-4}\n{"step": 82, "lo')
    (run / "media" / "a.png").write_bytes(b"\x89PNG no more")
    (run / "media" / "b.webm").unlink()
    (run / "eval" / "heldout-shuffled" / "results.json").write_text("[]")
    text = Page(main([run]).read_text(encoding="utf-8")).text
    for expected in ("config.yaml cannot be read", "metrics.jsonl: 1 line could not be read", "not shown: a.png"):
        assert expected in text, expected
    assert "not shown: b.webm" in text and "not run" in text and "90.0%" in text


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        main([tmp_path / "nowhere"])


def test_long_lines_are_thinned_to_their_means() -> None:
    points = [(i, float(i % 2)) for i in range(100_000)]
    drawn = thin(points)
    assert len(drawn) == MAX_POINTS
    assert all(abs(y - 0.5) < 0.01 for _, y in drawn)
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)


def test_smoothing_keeps_a_straight_line_and_its_ends() -> None:
    line = [(i, 2.0 * i + 1) for i in range(500)]
    assert [y for _, y in smoothed(line)] == pytest.approx([y for _, y in line])


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-5, 3e-4], [0.1, 7.0], [-2.0, 5.0], [1e5, 2e6]])
def test_ticks_are_round_and_inside(values: list[float]) -> None:
    axis = Axis.fit(values, 0.0, 100.0, pad=True)
    ticks = axis.ticks(5)
    assert 2 <= len(ticks) <= 7
    assert all(0 <= axis(tick) <= 100 and float(f"{tick:.3g}") == pytest.approx(tick) for tick in ticks)


def test_a_log_axis_has_powers_of_ten_evenly_apart() -> None:
    axis = Axis.fit([1e-3, 1e3], 0.0, 60.0, log=True)
    assert [round(axis(10.0**k)) for k in range(-3, 4)] == [0, 10, 20, 30, 40, 50, 60]
    assert all(math.log10(tick) == round(math.log10(tick)) for tick in axis.ticks(5))


def test_a_chart_without_points_is_left_out() -> None:
    assert line_chart([Line("a", [], 0)], "loss") is None


def test_attributes_and_text_are_escaped_once() -> None:
    assert tag("a", "<b> & c", title='"x"') == '<a title="&quot;x&quot;">&lt;b&gt; &amp; c</a>'
    assert tag("p", Markup("<i>y</i>"), None, ["1", 2]) == "<p><i>y</i>12</p>"


def test_of_each_task_right_and_wrong_answers_are_shown() -> None:
    made = [
        {"task": t, "correct": ok, "id": i}
        for t, oks in (("a", [1, 1, 1, 0]), ("b", [0, 0, 0, 0]), ("c", [1]))
        for i, ok in enumerate(oks)
    ]
    shown = [(p["task"], p["id"]) for p in choose(made)]
    assert shown == [("a", 0), ("a", 1), ("a", 3), ("b", 0), ("b", 1), ("b", 2), ("c", 0)]


def test_small_numbers_and_times_read_well() -> None:
    assert [short(v) for v in (0, 25000, 1_500_000, 3e-5, 0.25, 2e9)] == ["0", "25k", "1.5M", "3e-5", "0.25", "2G"]
    assert [duration(s) for s in (0.4, 42, 663, 7500)] == ["0.4 s", "42 s", "11 min 3 s", "2 h 5 min"]
    assert layout({"tensor": 1, "expert": 8, "data": 16, "pipeline": 1}) == "EP8 x DP16"
    assert layout({"tensor": 1, "data": None}) == "one process"
