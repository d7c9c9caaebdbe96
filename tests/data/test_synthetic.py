"""The demo set: every answer can be read off the pixels, no answer is likelier than another, and no single frame of a
clip tells what is asked about all of them.

Balance. The answers of a task are equally likely, so that of n draws an answer with probability p comes n p times, with
standard deviation sqrt(n p (1 - p)); 5 of those is once in 1.7 million. What is not covered: that a network finds the
tasks learnable; `make demo` shows that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.synthetic import chart, clip, cycle, lights, still
from megatron_glmv.data.synthetic.canvas import CELL, COLOURS, SHAPES, SIDE, WHITE, Pixels, blank
from megatron_glmv.data.synthetic.conversation import make_sample
from megatron_glmv.data.synthetic.demo import make_demo
from megatron_glmv.data.synthetic.family import TEXT
from megatron_glmv.data.synthetic.grid import DIRECTIONS, row_and_column
from megatron_glmv.data.synthetic.registry import FAMILIES, TASKS
from megatron_glmv.data.synthetic.seeds import EVAL, TRAIN, stream
from megatron_glmv.data.synthetic.task import TIERS

DRAWS = 600


def coloured(frame: Pixels, name: str) -> np.ndarray:
    """[h, w] bool: pixels of this colour."""
    return np.abs(frame.astype(int) - COLOURS[name]).sum(-1) < 24


def white(frame: Pixels) -> np.ndarray:
    return np.abs(frame.astype(int) - WHITE).sum(-1) < 24


@pytest.mark.parametrize("name", sorted(TASKS))
def test_all_answers_of_a_task_are_equally_likely(name: str) -> None:
    family = next(family for family in FAMILIES.values() if TASKS[name] in family.tasks)
    task, asked = TASKS[name], []
    for index in range(DRAWS):
        rng = stream(7, TRAIN, name, index)
        asked.append(task.ask(family.draw(rng), rng))
    assert task.tier in TIERS
    counts: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for ask in asked:
        counts[ask.answer] += 1
        expected.update({choice: 1 / len(ask.choices) for choice in ask.choices})
    for answer in set(counts) | set(expected):
        spread = math.sqrt(expected[answer])
        assert abs(counts[answer] - expected[answer]) <= 5 * spread, (answer, counts[answer], expected[answer])


def test_a_picture_shows_what_its_answers_say() -> None:
    for index in range(60):
        scene = still.draw(stream(3, TRAIN, "still", index))
        rows, columns = np.nonzero(coloured(scene.pixels, scene.colour))
        assert (int(rows.mean()) // CELL, int(columns.mean()) // CELL) == row_and_column(scene.place)
        line = white(scene.pixels)[3 * CELL + CELL // 2, : 3 * CELL + CELL]
        assert int((np.diff(line.astype(int)) == 1).sum()) == scene.count
        others = [name for name in COLOURS if name != scene.colour and coloured(scene.pixels, name).any()]
        assert not others


def test_a_chart_shows_what_its_answers_say() -> None:
    for index in range(30):
        drawn = chart.draw(stream(3, TRAIN, "chart", index))
        heights = {name: int(coloured(drawn.pixels, name).any(axis=1).sum()) for name in drawn.colours}
        assert max(heights, key=heights.__getitem__) == drawn.highest
        assert min(heights, key=heights.__getitem__) == drawn.lowest
        assert {n: h // chart.LEVEL_HEIGHT for n, h in heights.items()} == dict(
            zip(drawn.colours, drawn.heights, strict=True)
        )


def test_lamps_light_in_the_order_of_the_answers() -> None:
    drawn = lights.draw(stream(3, TRAIN, "lights", 0))
    seen = [next(name for name in COLOURS if coloured(frame, name).any()) for frame in drawn.pixels]
    assert tuple(seen) == drawn.order and drawn.after(seen[-1]) == seen[0]


@pytest.mark.parametrize("frame", range(lights.FRAMES))
def test_no_frame_of_a_cycle_tells_what_is_next(frame: int) -> None:
    """Clips that show the same at this frame disagree about what follows any colour, half of them each way."""
    by_picture: dict[bytes, list[cycle.Cycle]] = {}
    for order in cycle.ORDERS:
        drawn = cycle.film(order)
        by_picture.setdefault(drawn.pixels[frame].tobytes(), []).append(drawn)
    assert len(by_picture) == len(cycle.CYCLED)
    for alike in by_picture.values():
        for colour in cycle.CYCLED:
            followers = Counter(drawn.after(colour) for drawn in alike)
            assert sorted(followers.values()) == [1, 1]


def test_a_clip_moves_as_its_answer_says() -> None:
    for direction, step in DIRECTIONS.items():
        film = clip.film("red", "cross", direction, 28, 42).pixels
        for before, after in pairwise(film):
            moved = np.roll(before, (step[0] * clip.STEP, step[1] * clip.STEP), (0, 1))
            assert np.array_equal(moved, after)


@pytest.mark.parametrize("frame", range(clip.FRAMES))
def test_no_frame_of_a_clip_tells_its_direction(frame: int) -> None:
    """Over all starts, each direction shows exactly the same pictures at this frame, each once."""
    starts = [(row, column) for row in range(0, SIDE, clip.STEP) for column in range(0, SIDE, clip.STEP)]
    shown = {
        direction: Counter(clip.film("blue", "triangle", direction, *start).pixels[frame].tobytes() for start in starts)
        for direction in DIRECTIONS
    }
    (first, *others) = shown.values()
    assert len(first) == len(starts) and all(other == first for other in others)
    film = clip.film("blue", "triangle", "left", *starts[0]).pixels
    assert len({picture.tobytes() for picture in film}) == clip.FRAMES  # and something moves


def test_shapes_and_colours_differ_and_stand_out() -> None:
    pictures = {
        (shape, colour): clip.film(colour, shape, "up", 0, 0).pixels[0] for shape in SHAPES for colour in COLOURS
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == len(SHAPES) * len(COLOURS)
    for picture in pictures.values():
        assert np.abs(picture.astype(int) - blank()).max() > 60


def test_a_sample_is_the_same_wherever_it_is_made_and_no_split_repeats_another() -> None:
    for family in FAMILIES.values():
        one = make_sample(family, 5, TRAIN, 11)
        assert one == make_sample(family, 5, TRAIN, 11)
        assert one.conversation() != make_sample(family, 5, EVAL, 11).conversation()
        assert one.conversation() != make_sample(family, 6, TRAIN, 11).conversation()


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_set_does_not_depend_on_workers_and_a_finished_one_is_kept(tmp_path: Path) -> None:
    counts = {"train_images": 40, "train_videos": 16, "train_text": 8, "eval_items": 2}
    made = make_demo(tmp_path / "a", **counts, workers=0)
    assert make_demo(tmp_path / "b", **counts, workers=2).samples == made.samples
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert make_demo(tmp_path / "a", **counts, workers=0).reused
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    changed = make_demo(tmp_path / "a", **counts, seed=1, workers=0)
    assert not changed.reused and tree(tmp_path / "a") != tree(tmp_path / "b")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="name an empty directory"):
        make_demo(tmp_path, train_images=1, train_videos=0, train_text=0, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_questions_have_each_task_of_every_family_and_their_media(tmp_path: Path) -> None:
    from megatron_glmv.data.synthetic.heldout import write_eval

    samples = [make_sample(family, 0, EVAL, index) for family in FAMILIES.values() for index in range(2)]
    count = write_eval(tmp_path, samples)
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert len(lines) == count == 2 * len(TASKS)
    assert Counter(line["task"] for line in lines) == dict.fromkeys(TASKS, 2)
    for line in lines:
        shown = [part for message in line["messages"] for part in message["content"] if part["type"] != "text"]
        assert len(shown) == (line["domain"] != TEXT)
        assert all((tmp_path / part[part["type"]]).is_file() for part in shown)
        assert line["answer"] in line["choices"]
