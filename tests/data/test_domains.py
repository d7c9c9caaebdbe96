"""The procedural domains: every answer is found again from what is shown, is graded right, and cannot be guessed.

Chance. Where a task lists choices they are equally likely, whatever is not seen: of n draws an answer with probability
p comes n p times with standard deviation sqrt(n p (1 - p)); 5 of those is once in 1.7 million. Open tasks state a
level that the most frequent answer of many draws must not pass by 5 standard deviations. Not covered: that a network
finds the tasks learnable.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data.scene_reader import READERS, boxes
from data.sheet_reader import WRITTEN, read, recorded
from typer.testing import CliRunner

from megatron_glmv.cli.app import app
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.synthetic.canvas import COLOURS
from megatron_glmv.data.synthetic.domains.corpus import Plan, write
from megatron_glmv.data.synthetic.domains.drawing import Sheet, style_of
from megatron_glmv.data.synthetic.domains.form import OFF, ON, PRETRAIN, QUESTIONS, SFT, Recipe, make
from megatron_glmv.data.synthetic.domains.lattice import choose, is_held_out, templates
from megatron_glmv.data.synthetic.domains.markup import same
from megatron_glmv.data.synthetic.domains.page import render
from megatron_glmv.data.synthetic.domains.problem import TIERS, Problem, problem
from megatron_glmv.data.synthetic.domains.registry import DOMAINS
from megatron_glmv.data.synthetic.seeds import EVAL, TRAIN, VAL, stream
from megatron_glmv.evaluate.dataset import load_questions
from megatron_glmv.evaluate.grading import right
from megatron_glmv.evaluate.metrics import exact_match
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item

NAMES = sorted(DOMAINS)
FEW, DRAWS = 6, 24


@cache
def few(name: str, tier: int, split: str) -> tuple[Problem, ...]:
    return tuple(problem(DOMAINS[name], tier, split, 3, index) for index in range(FEW))


def items(name: str, tier: int, count: int, split: str = TRAIN) -> list[Problem]:
    """The first items of seed 3; what several tests look at is drawn once."""
    more = [problem(DOMAINS[name], tier, split, 3, index) for index in range(FEW, count)]
    return [*few(name, tier, split)[:count], *more]


def shown(item: Problem) -> str:
    digest = hashlib.sha256()
    for medium in item.media:
        digest.update(medium.pixels.tobytes())
    return digest.hexdigest() + "".join(ask.question + ask.answer for ask in item.asks)


@pytest.mark.parametrize("name", NAMES)
def test_an_item_is_a_pure_function_of_its_arguments(name: str) -> None:
    for tier in (0, 2):
        one = problem(DOMAINS[name], tier, TRAIN, 5, 11)
        assert shown(one) == shown(problem(DOMAINS[name], tier, TRAIN, 5, 11))
        others = [(EVAL, 5, 11), (VAL, 5, 11), (TRAIN, 6, 11), (TRAIN, 5, 12)]
        assert shown(one) not in {shown(problem(DOMAINS[name], tier, *other)) for other in others}


def test_no_template_is_shared_between_training_and_held_out_data() -> None:
    for sizes in ((4, 2), (4, 3), (4, 4), (6, 4)):
        train, held_out = set(templates(False, sizes)), set(templates(True, sizes))
        assert train.isdisjoint(held_out) and len(train | held_out) == math.prod(sizes)
        assert held_out and 0.15 < len(held_out) / math.prod(sizes) < 0.4
        drawn = {choose(stream(0, VAL, "lattice", i), VAL, sizes) for i in range(200)}
        assert drawn <= train
    with pytest.raises(ValueError, match="too few"):
        templates(True, (1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_wordings_and_styles_of_held_out_items_are_their_own(name: str) -> None:
    for tier in TIERS:
        for split in (TRAIN, EVAL):
            for item in items(name, tier, FEW, split):
                assert is_held_out(item.style) == (split == EVAL)
                assert all(is_held_out(ask.wording) == (split == EVAL) for ask in item.asks)


@pytest.mark.parametrize("name", sorted(READERS))
def test_answers_are_what_is_shown(name: str) -> None:
    for tier in TIERS:
        for item in items(name, tier, FEW) + items(name, tier, FEW, EVAL):
            for ask in item.asks:
                assert READERS[name](item, ask) == ask.answer, (tier, ask)


@pytest.mark.parametrize("name", WRITTEN)
def test_answers_are_what_is_written(name: str) -> None:
    for tier in TIERS:
        for index in range(FEW):
            with recorded() as records:
                item = problem(DOMAINS[name], tier, TRAIN, 3, index)
            for ask in item.asks:
                assert read(records, item, ask) == ask.answer, (tier, ask)


def test_a_page_is_what_its_html_says() -> None:
    """Every text of the answer is written in its order, and each colour and each letter shows in the pixels."""
    for tier in TIERS:
        for index in range(FEW):
            with recorded() as records:
                item = problem(DOMAINS["html"], tier, TRAIN, 3, index)
            html = item.asks[0].answer
            said = [text for text in re.split(r"<[^>]*>", html) if text]
            assert [text for _, _, text in records[0].texts if not re.fullmatch(r"\d\.", text)] == said
            pixels = item.media[0].pixels
            style = style_of(item.style, plain=tier == 0)
            others = [html.replace(name, "blue" if name != "blue" else "red") for name in COLOURS if f":{name}" in html]
            others += [re.sub(rf">{text}<", f">{text[:-1]}x<", html, count=1) for text in said]
            assert others or tier == 1
            for other in (html, *others):
                sheet = Sheet(*pixels.shape[:2], style)
                render(sheet, other)
                assert np.array_equal(sheet.pixels(), pixels) == same(other, html) == (other == html)


def test_verifiers_find_every_right_answer_and_no_other() -> None:
    """The rewards of reinforcement learning, with each answer boxed behind a thought as SFT teaches it."""
    given: list[tuple[Item, bool]] = []
    for name in NAMES:
        for tier in TIERS:
            for ask in (ask for item in items(name, tier, 2) for ask in item.asks):
                wrong = [choice for choice in ask.choices if choice != ask.answer][:2]
                wrong += [] if wrong or name == "ocr" else [_other(name, ask.answer)]
                for said in (ask.answer, *wrong):
                    response = f"<think>{ask.steps[0]}</think>\n<|begin_of_box|>{said}<|end_of_box|>"
                    given.append((Item(name, response, ask.answer), said == ask.answer))
    with Judge() as judge:
        judgements = judge.judge([item for item, _ in given])
    for (item, wanted), judgement in zip(given, judgements, strict=True):
        assert (judgement.reward > 0.99) == wanted, (item, judgement)
    assert {wanted for _, wanted in given} == {True, False}


def _other(name: str, answer: str) -> str:
    """An answer of the same form that is wrong: other numbers, an element more."""
    if name == "html":
        return answer + "<hr>"
    if name in ("grounding", "gui_action"):
        moved = re.sub(r"\d+", lambda n: str((int(n[0]) + 400) % 1000), answer)
        return moved if moved != answer else '{"action_type":"scroll","direction":"up"}'
    return str(float(answer) * 2 + 50)


def test_evaluation_takes_a_box_that_is_near_and_not_one_that_is_far() -> None:
    assert right("grounding", "[100,100,200,210]", "[100,100,200,200]")
    assert not right("grounding", "[100,100,200,450]", "[100,100,200,200]")
    assert not right("grounding", "nowhere", "[100,100,200,200]") and not right("colour", "[1,1,2,3]", "[1,1,2,2]")
    click = '{"action_type":"click","box_2d":[0,0,100,100]}'
    assert right("gui_action", click.replace("100]", "110]"), click)
    assert not right("gui_action", click.replace("click", "scroll"), click) and not right("gui_action", "click", click)
    assert right("html", "<hr/>\n<p>a</p>", "<hr><p>a</p>") and not right("html", "<p>" * 99, "<hr>")


def test_html_is_compared_as_a_tree() -> None:
    meant = '<h1 style="color:red">ab</h1><ul><li>x</li></ul><hr>'
    assert same('\n<h1 style="color: red;"> ab </h1>\n<ul>\n <li>x</li>\n</ul><hr/>', meant)
    for wrong in ("", "<h1>ab</h1><ul><li>x</li></ul><hr>", meant.replace("</ul>", ""), meant + "</p>", meant + "<hr>"):
        assert not same(wrong, meant)


def test_boxes_are_tight_around_what_is_shown() -> None:
    """To one pixel and the rounding of the answer: smooth edges blur the outermost pixel of a slanted side."""
    for tier in TIERS:
        for item in items("grounding", tier, FEW):
            for ask in item.asks:
                given = json.loads(ask.answer)
                given = given if isinstance(given[0], list) else [given]
                seen = boxes(item, ask)
                slack = 1000 * 2 / item.media[0].pixels.shape[0] + 1
                assert len(given) == len(seen)
                assert np.abs(np.array(given) - np.array(seen)).max() <= slack


@pytest.mark.parametrize("name", NAMES)
def test_higher_tiers_are_more_work(name: str) -> None:
    """Work is how many elements have to be read or compared, and steps made."""
    means = [np.mean([ask.work for item in items(name, tier, FEW) for ask in item.asks]) for tier in TIERS]
    assert all(low < high for low, high in pairwise(means)), means


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_is_graded_right_and_another_wrong(name: str) -> None:
    for tier in TIERS:
        for item in items(name, tier, 4):
            for ask in item.asks:
                boxed = f"<think>some thought</think><|begin_of_box|>{ask.answer}<|end_of_box|>"
                assert exact_match(ask.answer, ask.answer) and exact_match(boxed, ask.answer)
                for other in (*(c for c in ask.choices if c != ask.answer), ask.answer + "7", "7" + ask.answer, ""):
                    assert not exact_match(other, ask.answer)
                assert ask.steps and all(ask.steps)


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_likelier_than_chance(name: str) -> None:
    """Per task and tier; the count of each choice and of the most frequent open answer against the stated level."""
    given: dict[tuple[str, int], list[tuple[str, tuple[str, ...], float]]] = defaultdict(list)
    for tier in (0, 1, 2):
        for item in items(name, tier, DRAWS):
            for ask in {
                (ask.task, ask.answer): ask for ask in item.asks
            }.values():  # one scene may be asked alike twice
                given[ask.task, tier].append((ask.answer, ask.choices, ask.chance))
    assert given
    for key, rows in given.items():
        counts = Counter(answer for answer, _, _ in rows)
        expected: Counter[str] = Counter()
        for _, choices, chance in rows:
            expected.update(dict.fromkeys(choices, chance))
        if any(choices for _, choices, _ in rows):
            assert all(abs(chance * len(choices) - 1) < 1e-9 for _, choices, chance in rows)
            for answer in expected:
                spread = math.sqrt(expected[answer]) + 0.5
                assert abs(counts[answer] - expected[answer]) <= 5 * spread, (key, answer, counts, expected)
        else:
            level = sum(chance for _, _, chance in rows)
            assert counts.most_common(1)[0][1] <= level + 5 * math.sqrt(level) + 1, (key, counts.most_common(3))


def test_sft_samples_think_half_the_time_and_always_box_one_answer() -> None:
    recipe = Recipe(TRAIN, SFT)
    made = [make(recipe, DOMAINS[name], tier, i) for name in NAMES for tier in (0, 1) for i in range(6)]
    thinking = [sample.conversation["thinking"] for sample in made]
    spread = math.sqrt(len(made)) / 2
    assert abs(sum(thinking) - len(made) / 2) < 5 * spread and {True, False} == set(thinking)
    for sample in made:
        answer = sample.conversation["messages"][-1]
        assert answer["content"].count("<|begin_of_box|>") == answer["content"].count("<|end_of_box|>") == 1
        assert exact_match(answer["content"], sample.conversation["answer"])
        assert bool(answer.get("reasoning_content")) == sample.conversation["thinking"]
    for mode, thinks in ((ON, True), (OFF, False)):
        sample = make(Recipe(TRAIN, SFT, mode), DOMAINS["counting"], 0, 0)
        assert (sample.conversation["messages"][-1]["reasoning_content"] != "") == thinks


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_corpus_is_the_same_by_any_number_of_workers_and_after_an_interruption(tmp_path: Path) -> None:
    plan = Plan(Recipe(TRAIN, PRETRAIN), 24, tiers=(0, 1), part=8)
    made = write(plan, tmp_path / "a", workers=0)
    assert (made.parts, made.found) == (3, 0)
    lost = tmp_path / "a" / "synth-000001-000000.tar"
    before = tree(tmp_path / "a")
    write(plan, tmp_path / "b", workers=2)
    assert tree(tmp_path / "b") == before
    lost.unlink()
    (tmp_path / "a" / "synth-000001-000000.partial").write_bytes(b"cut off")
    again = write(plan, tmp_path / "a", workers=0)
    assert (again.parts, again.found) == (1, 2) and tree(tmp_path / "a") == before
    with pytest.raises(DataError, match="another corpus"):
        write(Plan(Recipe(TRAIN, PRETRAIN, seed=1), 24, tiers=(0, 1), part=8), tmp_path / "a")
    dataset = ShardDataset(tmp_path / "a")
    assert len(dataset) == 24


def test_questions_are_what_evaluation_reads(tmp_path: Path) -> None:
    plan = Plan(Recipe(EVAL, QUESTIONS), 2 * len(DOMAINS), tiers=(0, 1), part=5)
    write(plan, tmp_path / "q", workers=0)
    files = tree(tmp_path / "q")
    assert write(plan, tmp_path / "q", workers=0).parts == 0 and tree(tmp_path / "q") == files
    questions = load_questions(tmp_path / "q" / "questions.jsonl")
    assert Counter(question.domain for question in questions) == dict.fromkeys(NAMES, 2)
    for question in questions:
        assert all(Path(path).is_file() for _, path in question.media)
        assert question.chance > 0 and question.tier in ("0", "1")


def test_options_without_meaning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are"):
        Plan(Recipe(TRAIN), 1, ("chess",))
    with pytest.raises(DataError, match="tier 9"):
        Plan(Recipe(TRAIN), 1, tiers=(9,))
    with pytest.raises(ValueError, match="form"):
        Recipe(TRAIN, "poem")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="name an empty directory"):
        write(Plan(Recipe(TRAIN), 1), tmp_path)


def test_the_command_writes_what_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "set" / "train"
    asked = ["data", "synth", "--out", str(out), "--samples", "8", "--domains", "ocr,text", "--tiers", "1"]
    done = CliRunner().invoke(app, [*asked, "--form", "sft", "--thinking", "on", "--vocab", "400", "--workers", "0"])
    assert done.exit_code == 0, done.output
    assert "4 ocr, 4 text" in done.output
    dataset = ShardDataset(out)
    assert {entry.domain for entry in map(dataset.entry, range(8))} == {"ocr", "text"}
    assert (tmp_path / "set" / "tokenizer" / "tokenizer.json").is_file()
    for wrong in (["--split", "test"], ["--form", "poem"], ["--tiers", "x"], ["--domains", "chess"]):
        refused = CliRunner().invoke(app, ["data", "synth", "--out", str(tmp_path / "no"), *wrong])
        assert isinstance(refused.exception, DataError) and not (tmp_path / "no").exists()
