"""Text is never given to what executes it, and verifiers that go wrong are told of.

`sympy.sympify` and `parse_expr` run text that they are given; a first test shows that the payload here does harm by
them. Then every verifier judges it, in a process in which both are replaced by alarms, and the workers of the pool, in
which they may be called on parts that a grammar has read, never hand them the payload.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_glmv.rl.rewards.domains import VERIFIERS
from megatron_glmv.rl.rewards.health import ENOUGH, WINDOW, Health
from megatron_glmv.rl.rewards.pool import Call, Pool

ROOT = Path(__file__).parent.parent.parent
PAYLOADS = (
    "__import__('os').system('touch {path}')",
    "exec(chr(105)+chr(109))",
    "open('{path}','w')",
    "1+open(chr(47)+'{path}','w').write('1')",
    "x^2 + (lambda: open('{path}','w'))()",
)
PARENT = """
import json, sys
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item
from megatron_glmv.rl.rewards.domains import VERIFIERS
from megatron_glmv.config.errors import ConfigError
payloads = json.loads(sys.argv[1])
before = "sympy" in sys.modules
with Judge() as judge:
    names = []
    for name in VERIFIERS:
        try:
            judge.require({name})
            names.append(name)
        except ConfigError:  # a judge model's, or a sandbox's
            pass
    items = [
        Item(name, f"<think></think>\\n<|begin_of_box|>{text}<|end_of_box|>", answer, {"question": text})
        for name in names for text in payloads for answer in (text, "1")
    ]
    rewards = [one.reward for one in judge.judge(items)]
print(json.dumps({"judged": len(rewards), "names": names, "before": before, "after": "sympy" in sys.modules}))
"""
ALARMED = """
import sys; sys.path.insert(0, sys.argv[1])
import sympy, sympy.core.sympify, sympy.parsing.sympy_parser
from megatron_glmv.rl.rewards import worker
heard = []
def alarmed(real):
    def call(text, *more, **named):
        if isinstance(text, str) and any(word in text for word in ("import", "open", "exec", "lambda", "chr")):
            heard.append(text)
            raise ValueError("raw text")
        return real(text, *more, **named)
    return call
for module in list(sys.modules.values()):
    for name in ("sympify", "parse_expr"):
        theirs = str(getattr(module, "__name__", "")).startswith(("sympy", "latex2sympy", "math_verify"))
        if theirs and callable(getattr(module, name, None)):
            setattr(module, name, alarmed(getattr(module, name)))
real = worker.judge
def judge(request):
    if request["final"] == "control":
        try: sympy.sympify("open")
        except ValueError: pass
        return worker.wrong(str(len(heard)))
    verdict = real(request)
    return worker.wrong(f"heard {heard}") if heard else verdict
worker.judge = judge
worker.main()
"""


def test_the_payload_does_harm_where_it_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "pwned"
    program = "import sys, sympy\ntry: sympy.sympify(sys.argv[1])\nexcept Exception: pass"
    subprocess.run([sys.executable, "-c", program, PAYLOADS[0].format(path=path)], check=True, timeout=120)
    assert path.exists()


def test_no_file_of_ours_names_sympy_in_code() -> None:
    for file in (ROOT / "megatron_glmv").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("sympy", "latex2sympy2_extended") for name in named), file


def test_every_verifier_leaves_hostile_text_alone(tmp_path: Path) -> None:
    """In a process of its own: sympy is not even there, nothing was made, and every text was judged."""
    path = tmp_path / "pwned"
    payloads = json.dumps([text.format(path=path) for text in PAYLOADS])
    done = subprocess.run(
        [sys.executable, "-c", PARENT, payloads], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"math", "chart", "vqa", "counting"} <= set(found["names"]) <= set(VERIFIERS)
    assert found["judged"] == 2 * len(PAYLOADS) * len(found["names"])
    assert not found["before"] and not found["after"], "sympy belongs to the pool's workers"
    assert list(tmp_path.iterdir()) == []


def test_the_workers_never_hand_raw_text_to_sympy(tmp_path: Path) -> None:
    path = tmp_path / "pwned"
    pool = Pool(workers=1, memory_mib=2048, boot=ALARMED)
    try:
        texts = [text.format(path=path) for text in PAYLOADS]
        calls = [
            Call({"verifier": name, "final": text, "answer": answer, "extra": {}}, 10)
            for name, verifier in VERIFIERS.items()
            if verifier.isolated and name != "coding"
            for text in texts
            for answer in (text, "x")
        ]
        replies = pool.run(calls)
        (control,) = pool.run([Call({"verifier": "math", "final": "control", "answer": "", "extra": {}}, 10)])
    finally:
        pool.close()
    assert len(replies) >= 2 * len(PAYLOADS)
    assert not [r.value for r in replies if r.value is None or "heard" in r.value["reason"]]
    assert control.value is not None and control.value["reason"] == "1", "the alarm rings where it is touched"
    assert not path.exists()


def health_of(count: int, rewards: tuple[float, ...] = (1.0, 0.0), failure: str = "", failed: bool = False) -> Health:
    health = Health()
    for n in range(count):
        health.add("v", rewards[n % len(rewards)], 0.1, "rule", failure if n % 10 == 0 else "", failed and n == 0)
    return health


def test_a_verifier_that_does_well_is_not_told_of() -> None:
    assert health_of(8 * WINDOW).warnings() == []
    assert health_of(ENOUGH - 1, (1.0,), "timeout", True).warnings() == [], "too few to say"


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (health_of(2 * ENOUGH, failure="timeout"), "v: 10% of the calls did not end in time or died"),
        (health_of(2 * ENOUGH, failure="died"), "v: 10% of the calls did not end in time or died"),
        (health_of(2 * ENOUGH, failed=True), "v: the model that judges could not be asked 1 times"),
        (health_of(2 * ENOUGH, (1.0,)), f"v: all of the last {2 * ENOUGH} pass"),
        (health_of(2 * ENOUGH, (0.0,)), f"v: none of the last {2 * ENOUGH} pass"),
    ],
)
def test_what_goes_wrong_is_said(health: Health, said: str) -> None:
    assert said in health.warnings()


def test_a_pass_rate_that_leaves_its_course_is_said() -> None:
    health = health_of(8 * WINDOW)
    for n in range(WINDOW):
        health.add("v", float(n % 10 != 0), 0.1, "rule", "", False)
    (said,) = health.warnings()
    assert said.startswith(f"v: 90% of the last {WINDOW} pass, 5")


def test_judges_that_disagree_are_said() -> None:
    health = health_of(2 * ENOUGH)
    one = health.of("v")
    one.asked, one.disagreed = ENOUGH, ENOUGH // 5
    assert health.warnings() == []
    one.disagreed = ENOUGH // 2
    assert health.warnings() == ["v: judges disagree on 50%"]
