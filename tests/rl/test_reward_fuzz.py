"""A thousand hostile answers to every verifier: nobody hangs, nothing is executed, nothing is left behind.

Covers what text can do to the verifiers. What executed code can do is tests/rl/test_reward_sandbox.py.
"""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import psutil
import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.rl.rewards.domains import VERIFIERS
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item, JudgeOptions

SEED, COUNT = 20261126, 1000
LIMIT = 2.0
"""Seconds of one call."""
SLACK = 3.0
"""On top, for a busy machine: killing and noticing."""

REFERENCES = {
    "grounding": [[10, 10, 110, 110]],
    "gui_grounding": [10, 10, 110, 110],
    "gui_action": "left_click(start_box='[5,5]')",
    "geo": [48.0, 2.0],
    "logic": {"a": "knight", "b": "knave"},
    "multiple_choice": "B",
    "physics": "9.81 m/s^2",
    "math": "\\frac{x^2+1}{2}",
}
SHAPES = (
    "{n}**{n}**{n}**{n}",
    "{n}^{{{n}^{{{n}^{{{n}}}}}}}",
    "({n}^6)!",
    "{n}!!!!",
    "2^{{10^{n}}}",
    "((({n}!)!)!)!",
    "\\sum_{{k=1}}^{{10^{{{n}}}}} k^k",
    "\\int_0^1 x^{{x^{{x^{{{n}}}}}}} dx",
    "\\prod_{{k=1}}^{{99999999}} k",
    "\\sqrt{{" * 120 + "2" + "}}" * 120,
    "(" * 2000 + "1" + ")" * 2000,
    "[" * 3000,
    "{{" * 3000,
    "\\frac{{1}}{{" * 200 + "x" + "}}" * 200,
    "{n}" * 400,
    "1e{n}{n}{n}",
    "0.{n}" + "0" * 3000 + "1",
    "\\frac{{{n}}}{{0}}",
    "__import__('os').system('touch {path}')",
    "open('{path}', 'w').write('x')",
    "().__class__.__bases__[0].__subclasses__()[{n}]('touch {path}', shell=True)",
    "eval(compile('import socket; socket.create_connection((\"127.0.0.1\", {port}))', '', 'exec'))",
    "\\input{{{path}}} \\write18{{touch {path}}}",
    "; touch {path}; $(touch {path}) `touch {path}`",
    "lambda: [i for i in iter(int, 1)]",
    "x" * 90_000,
    "a " * 45_000,
    " " * 30_000 + "x",
    "[[1,2,3,4]]" * 500,
    "[1e308, 1e308, -1e308, {n}]",
    "\x00\x01\x02 {n} \x7f\ufeff\u202e",
    "\ud800\udfff {n}",
    "\ufdfa" * 3000,
    "e\u0301" * 5000,
    "🧮" * 4000,
    "NaN, Infinity, -Infinity, {n}",
    '{{"a":' * 500 + "1" + "}}" * 500,
    '{{"action_type": "click", "box_2d": [[{n}, -1, 1e9, null]]}}',
    "left_click(start_box='" + "\\" * 5000 + "')",
    "Click [" + "]" * 5000,
    "A" + ", A" * 900 + "!",
    "{n} m/s" + "/s" * 60,
    "{n} " + "(" * 90,
    "<think>" * 40 + "{n}",
    "<|begin_of_box|>" * 40,
    "%s%n%x {n} {{}} {{0}}",
    "\\begin{{pmatrix}} {n} & " + "1 & " * 100 + "\\end{{pmatrix}}",
    "x=" * 100 + "{n}",
    "x_{n}^{n} + " * 40 + "y",
    "\\{{" + ", ".join(str(n) for n in range(150)) + "\\}}",
    "\\lim_{{x \\to 0}} \\frac{{\\sin^{{{n}}}(x)}}{{x^{{{n}}}}}",
    "\\binom{{999}}{{{n}}}\\binom{{999}}{{500}}!",
    "\\log_{{0}}(0)^{{{n}}}",
    "x^{n} + x + 1 = 0",
    "|x| < {n} \\cup x > \\infty",
)


def hostile(path: Path, port: int) -> list[str]:
    """COUNT strings: each shape with drawn numbers, some of them cut, doubled or with signs exchanged."""
    rng = random.Random(SEED)
    texts = []
    for index in range(COUNT):
        n = rng.choice((0, 1, 2, 7, 9, 10, 99, 999, 10**6, 10**9))
        text = SHAPES[index % len(SHAPES)].format(n=n, path=path / f"pwned{index}", port=port)
        trick = rng.randrange(6)
        if trick == 0:
            text = text[: rng.randrange(1, len(text) + 1)]
        elif trick == 1:
            text = text + rng.choice(("^", "!", "=", "\\", "{", "\n", ",")) + text[:200]
        elif trick == 2:
            place = rng.randrange(len(text))
            text = text[:place] + chr(rng.choice((0, 8, 36, 40, 92, 94, 123, 125, 0x2028, 0xFFFF))) + text[place:]
        texts.append(text)
    return texts


@pytest.mark.slow
def test_a_thousand_hostile_answers(tmp_path: Path) -> None:
    attack(tmp_path, COUNT)


def test_a_hundred_hostile_answers(tmp_path: Path) -> None:
    attack(tmp_path, len(SHAPES) * 2)


def possible(name: str) -> bool:
    """Whether a domain can be judged here: without a model, with this machine's sandbox and browser."""
    with Judge() as judge:
        try:
            judge.require({name})
        except ConfigError:
            return False
    return True


def attack(tmp_path: Path, count: int) -> None:
    """Judge the first `count` strings; assert that the process is as it was and every limit was kept."""
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    descriptors = me.num_fds()
    names = sorted(name for name in VERIFIERS if possible(name))
    parsing = [name for name in names if VERIFIERS[name].isolated]
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        texts = hostile(tmp_path, trap.getsockname()[1])[:count]
        items = []
        for index, text in enumerate(texts):
            # every second to a verifier with a parser: they have the most to lose
            name = parsing[index // 2 % len(parsing)] if index % 2 else names[index // 2 % len(names)]
            response = text if "<" in text else f"<|begin_of_box|>{text}<|end_of_box|>"
            items.append(Item(name, response, REFERENCES.get(name, "4")))
        with Judge(JudgeOptions(workers=2, seconds=LIMIT)) as judge:
            judgements = judge.judge(items)
            again = judge.judge([Item("math", "<|begin_of_box|>\\frac{1}{2}<|end_of_box|>", "0.5")])
        try:
            connected = trap.accept()
        except BlockingIOError:
            connected = None
    assert len(judgements) == count
    assert again[0].reward == 1.0, "the pool still works"
    late = [j for j in judgements if j.seconds > LIMIT + SLACK]
    assert late == []
    assert all(0 <= j.reward <= 1 and j.reason for j in judgements)
    assert connected is None
    assert list(tmp_path.iterdir()) == []
    assert {child.pid for child in me.children(recursive=True)} - before == set()
    assert me.num_fds() == descriptors
    assert os.getpid() == me.pid
