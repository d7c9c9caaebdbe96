"""Pages in a real browser: what is alike, what is damaged, and what pages that mean harm can reach.

Left out where there is no browser. The parts are computed again from first principles where that is short; what
Design2Code's own program gives for the same pages is not compared.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.rl.rewards import browser
from megatron_glmv.rl.rewards.likeness import assignment, ciede2000, ssim
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item, Judgement, JudgeOptions

ROWS = [("h1", "Shoes for everyone", "#802020"), ("p", "Free delivery from 30 euros on.", "black")]
ROWS += [("p", f"Offer number {n}: model {name}", "navy") for n, name in enumerate(("Alpha", "Bravo", "Charlie"))]
STYLE = "body{font-family:sans-serif;margin:20px} div{background:#3060c0;width:300px;height:120px}"


def page(rows: list[tuple[str, str, str]], style: str = STYLE) -> str:
    texts = "".join(f"<{tag} style='color:{colour}'>{text}</{tag}>" for tag, text, colour in rows)
    return f"<!DOCTYPE html><html><head><style>{style}</style></head><body>{texts}<div></div></body></html>"


REFERENCE = page(ROWS)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(JudgeOptions(workers=1)) as one:
        try:
            one.require({"ui_to_code"})
        except ConfigError as refusal:
            pytest.skip(str(refusal))
        yield one


def judged(judge: Judge, pages: list[str], answer: str = REFERENCE, **extra: str) -> list[Judgement]:
    boxed = [f"<|begin_of_box|>{one}<|end_of_box|>" for one in pages]
    return judge.judge([Item("ui_to_code", text, answer, extra) for text in boxed])


@pytest.mark.slow
def test_the_same_looks_are_one_and_damage_costs(judge: Judge) -> None:
    other_code = REFERENCE.replace("<p ", "<section ").replace("</p>", "</section>")
    other_code = other_code.replace("</style>", "section{margin:16px 0}</style>")
    same, fenced, other = judged(judge, [REFERENCE, f"```html\n{REFERENCE}\n```", other_code])
    assert same.reward == fenced.reward == 1.0 and same.parts == dict.fromkeys(same.parts, 1.0)
    assert set(same.parts) == {"block", "text", "position", "colour", "picture"}
    assert other.reward > 0.99, other
    fewer = [one.reward for one in judged(judge, [page(ROWS[:n]) for n in (5, 3, 1)])]
    assert all(a > b for a, b in itertools.pairwise(fewer)), fewer
    moved = [page(ROWS, STYLE.replace("margin:20px", f"margin:{n}px")) for n in (20, 60, 300)]
    places = [one.parts["position"] for one in judged(judge, moved)]
    assert all(a > b for a, b in itertools.pairwise(places)), places
    tinted = [page([(tag, text, colour) for tag, text, _ in ROWS]) for colour in ("#101060", "#f0f080")]
    colours = [one.parts["colour"] for one in judged(judge, tinted)]
    assert all(a > b for a, b in itertools.pairwise([1.0, *colours])), colours
    broken = REFERENCE.replace("</style>", "")
    blank, none, shuffled, cut = judged(judge, ["<p></p>", "no page", page(ROWS[::-1]), broken])
    assert blank.reward < 0.05 and none.reward == 0.0 and cut.reward < 0.05
    assert 0.3 < shuffled.reward < 0.98
    health = judge.health.summary()["ui_to_code"]
    assert health["block_mean"] > 0 and health["timeouts"] == health["died"] == 0


@pytest.mark.slow
def test_a_screenshot_alone_is_compared_as_a_picture(judge: Judge, tmp_path: Path) -> None:
    shot = browser.Browser()
    (tmp_path / "a.png").write_bytes(shot.shoot(REFERENCE, 30).png)
    shot.close()
    same, less, gone = judged(judge, [REFERENCE, page(ROWS[:2]), "<p></p>"], "", screenshot=str(tmp_path / "a.png"))
    assert same.parts == {"picture": 1.0} and 0 < less.reward < 1 and gone.reward < 0.05


@pytest.mark.slow
def test_pages_that_mean_harm(judge: Judge, tmp_path: Path) -> None:
    """No request reaches a socket, no file a picture, no script runs; what is too much costs its own reward only."""
    secret = tmp_path / "secret.html"
    secret.write_text("SECRET")
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/"
        pages = [
            f"<script>document.body.innerHTML='RAN'; fetch('{url}')</script><img src=x onerror=\"fetch('{url}')\">q",
            f"<img src='{url}a.png'><link rel=stylesheet href='{url}'><iframe src='{url}'></iframe>"
            f"<style>@import '{url}'; @font-face{{font-family:f;src:url({url})}} p{{font-family:f}}"
            f"</style><object data='{url}'></object><p>q</p>",
            f"<iframe src='file://{secret}' width=900 height=600></iframe><object data='file://{secret}'></object>q",
            f"<meta http-equiv=refresh content='0;url={url}'><p>q</p>",
            "<div style='height:100000000px;width:100000000px'>q</div>",
            "<b>" * 5_000 + "q",
            "<table>" * 3_000 + "q",
            "<style>*{animation:a 1s infinite}@keyframes a{to{transform:rotate(1turn)}}</style>" + "<i>q</i>" * 400,
        ]
        found = judged(judge, pages)
        looked = browser.Browser()
        seen = [looked.shoot(one, 30) for one in pages[:4]]
        looked.close()
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert all(0 <= one.reward < 0.7 for one in found), found
    assert [[block.text for block in one.blocks] for one in seen] == [["q"]] * 4, "none leaves itself"
    shades = np.unique(seen[2].pixels[60:550, 60:850].reshape(-1, 3), axis=0)
    assert len(shades) == 1, "an empty frame, without the secret's text"
    (again,) = judged(judge, [REFERENCE])
    assert again.reward == 1.0


@pytest.mark.slow
def test_what_is_late_is_killed_and_nothing_stays() -> None:
    """Of this browser, both times. Another one, a judge's, may end a page's process meanwhile."""
    me = psutil.Process()
    before, descriptors = {child.pid for child in me.children()}, me.num_fds()
    one = browser.Browser()

    def inside() -> list[int]:
        assert one.pid is not None
        pids = [child.pid for child in psutil.Process(one.pid).children(recursive=True)]
        assert len(pids) >= 3
        return pids

    def wait_for_the_end_of(pids: list[int]) -> None:
        deadline = time.monotonic() + 10
        while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(psutil.pid_exists, pids)) and one.pid is None

    one.shoot(REFERENCE, 30)
    late = inside()
    with pytest.raises(browser.Late):
        one.shoot(REFERENCE, 0.0)
    wait_for_the_end_of(late)
    assert one.shoot("<p>again</p>", 30).blocks[0].text == "again"
    closed = inside()
    one.close()
    wait_for_the_end_of(closed)
    assert {child.pid for child in me.children()} == before and me.num_fds() == descriptors


def test_without_a_browser_the_domain_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    browser.check.cache_clear()
    with Judge() as judge, pytest.raises(ConfigError, match="no browser"):
        judge.require({"ui_to_code"})
    with Judge(JudgeOptions(browser="/nowhere/chrome")) as judge, pytest.raises(ConfigError, match="/nowhere/chrome"):
        judge.require({"ui_to_code"})


def test_colour_difference() -> None:
    """Pairs of Sharma, Wu and Dalal 2005, table 1."""
    for one, other, difference in (
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ):
        assert ciede2000(np.array(one), np.array(other)) == pytest.approx(difference, abs=1e-4)


def test_the_assignment_is_the_best() -> None:
    rng = np.random.default_rng(3)
    for n, m in ((1, 1), (3, 3), (4, 6), (5, 5)):
        cost = rng.normal(size=(n, m))
        best = min(sum(cost[i, j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(m), n))
        found = assignment(cost)
        assert len(set(found)) == n and sum(cost[i, j] for i, j in enumerate(found)) == pytest.approx(best)


def test_structural_similarity_written_out() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.uniform(0, 255, (9, 8)), rng.uniform(0, 255, (9, 8))
    values = []
    for y, x in itertools.product(range(3), range(2)):
        p, q = a[y : y + 7, x : x + 7], b[y : y + 7, x : x + 7]
        together = ((p - p.mean()) * (q - q.mean())).mean()
        above = (2 * p.mean() * q.mean() + 2.55**2) * (2 * together + 7.65**2)
        values.append(above / ((p.mean() ** 2 + q.mean() ** 2 + 2.55**2) * (p.var() + q.var() + 7.65**2)))
    assert ssim(a, b) == pytest.approx(float(np.mean(values))) and ssim(a, a) == pytest.approx(1.0)
