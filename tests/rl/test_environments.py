"""Environments: pure worlds, disjoint splits, and text that is no action.

An episode is a function of (environment, split, seed, index, options, actions): the same in any process, so it is
compared between this one and those of the referee. Not covered: how well a model does in them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.tools import load_tool
from PIL import Image

from megatron_glmv.data.synthetic.domains.lattice import is_held_out
from megatron_glmv.rl.environments import gui_agent, worker, zoom
from megatron_glmv.rl.environments.gui_actions import Back, Click, read_action
from megatron_glmv.rl.environments.referee import BOOT, Referee
from megatron_glmv.rl.environments.registry import ENVIRONMENTS, episode_of, find
from megatron_glmv.rl.environments.types import Episode, InvalidAction

KINDS = (
    ("zoom", {}),
    ("zoom", {"objects": 4}),
    ("gui_agent", {"platform": "mobile", "actions": 3}),
    ("gui_agent", {"platform": "pc", "screens": "buttons"}),
    ("gui_agent", {"platform": "web", "screens": "buttons", "slack": 3}),
)
HOSTILE = (
    *("", " ", "\0", "click", "zoom", "zoom zoom", "zoom " + "north " * 3000, "10", "-1", "\u0661", "7" * 100_000),
    *("{" * 5000, "[" * 100_000, '{"action_type":"click","box_2d":' + "[" * 40, '{"action_type":"click","box_2d":NaN}'),
    *(
        '{"action_type":"click","box_2d":[1e999,0,0,0]}',
        '{"action_type":["click"],"x":{},"y":null}',
        '{"action_type":1}',
    ),
    *("left_click(" + "a=" * 5000, "left_click(start_box='[9,9]' " * 500, "Click [" + "9" * 400 + "]", "Click [0]"),
    *("__import__('os').system('id')", "<think>" * 500, "<think></think>" * 2, "<|user|>", "<|image|>" * 100),
    "<|begin_of_box|>north<|end_of_box|><|begin_of_box|>",
)


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    made = Referee(workers=1)
    yield made
    made.close()


def episodes(name: str, options: dict[str, object], count: int, split: str = "train") -> list[Episode]:
    return [Episode(name, split, 3, index, options) for index in range(count)]


@pytest.fixture(scope="module")
def another() -> Iterator[Referee]:
    """One that remembers nothing of the first."""
    made = Referee(workers=1)
    yield made
    made.close()


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_the_expert_gets_there_and_the_episode_can_be_played_again(
    referee: Referee, another: Referee, name: str, options: dict[str, object]
) -> None:
    """A wrong action first, then the best ones; here, in the referee, and again from the actions."""
    environment, noise = find(name), np.random.default_rng(1)
    played = episodes(name, options, 3)
    for episode, moment in zip(played, referee.reset(played), strict=True):
        start = environment.reset(episode)
        assert (start.state, start.observation, start.limit) == (moment.state, moment.observation, moment.limit)
        moments, actions = [moment], [environment.other(moment.state, noise)]
        assert actions[0] != environment.expert(moment.state)
        while not moments[-1].done:
            here = environment.step(moments[-1].state, actions[-1])
            moments += referee.step([(moments[-1], actions[-1])])
            assert (here.state, here.observation, here.done) == (
                moments[-1].state,
                moments[-1].observation,
                moments[-1].done,
            )
            assert json.loads(json.dumps(moments[-1].state)) == moments[-1].state, "pure data"
            actions.append(environment.expert(moments[-1].state) if not moments[-1].done else "")
        assert moments[-1].reward == 1.0 and moments[-1].steps <= start.limit
        assert another.replay([(episode, actions[:-1]), (episode, [])]) == [moments, moments[:1]]
    wrong = referee.reset(played[1:2])[0]
    while not wrong.done:
        (wrong,) = referee.step([(wrong, environment.other(wrong.state, noise))])
    assert wrong.reward == 0.0


def test_an_overview_says_nothing_of_its_digits_and_a_look_does() -> None:
    objects = {"north": ["red", "circle", "3"], "south": ["blue", "cross", "4"]}
    other = {"north": ["red", "circle", "8"], "south": ["blue", "cross", "1"]}
    assert (zoom.overview(objects) == zoom.overview(other)).all()
    assert (zoom.magnified(objects["north"]) != zoom.magnified(other["north"])).any()
    assert (zoom.magnified(None) == zoom.magnified(None)[0, 0]).all(), "nothing is elsewhere"


def test_a_click_counts_for_the_button_that_its_middle_is_in() -> None:
    """All three forms of one click; the button is found in the pixels of the screen that is shown."""
    episode = Episode("gui_agent", index=5)
    start = find("gui_agent").reset(episode)
    picture = np.asarray(Image.open(io.BytesIO(start.observation.images[0])))
    for widget in gui_agent.screen_of(start.state, []).widgets:
        x, y = (widget.at[0] + widget.at[2]) / 2, (widget.at[1] + widget.at[3]) / 2
        assert tuple(picture[round(y), round(x)]) == zoom.COLOURS[widget.name]
        said = f'{{"action_type":"click","x":{round(x / 0.112)},"y":{round(y / 0.112)}}}'
        after = find("gui_agent").step(start.state, said)
        assert after.state["path"] == [widget.name] and after.observation.text == f"opened {widget.name}"
    assert read_action("press_back()", "pc") == read_action("GoBack", "web") == Back()
    assert read_action("left_click(start_box='[10,20]')", "pc") == Click((10.0, 20.0))
    assert read_action('{"action_type":"click","box_2d":[0,10,20,30]}', "mobile") == Click((10.0, 20.0))
    assert read_action("Click [3]", "web") == Click(None, 3)
    nothing = find("gui_agent").step(start.state, '{"action_type":"click","x":0,"y":0}')
    assert nothing.observation.text == "nothing is there" and nothing.state == start.state and not nothing.done
    with pytest.raises(InvalidAction, match="first screen"):
        find("gui_agent").step(start.state, '{"action_type":"navigate_back"}')


def test_training_and_held_out_episodes_share_neither_seed_nor_template() -> None:
    for name, options in KINDS:
        sides = {}
        for split in ("train", "val", "eval"):
            found = [find(name).reset(e) for e in episodes(name, options, 60, split)]
            openings = [(opener, p) for opener in zoom.OPENERS for p in phrasings(name)]
            used = {
                next(
                    (zoom.OPENERS.index(o), phrasings(name).index(p))
                    for o, p in sorted(openings, key=lambda pair: -len(pair[0]))
                    if start.observation.text.startswith(o + p.split("{")[0])
                )
                for start in found
            }
            assert all(is_held_out(template) == (split == "eval") for template in used) and len(used) > 2
            sides[split] = {start.observation.images[0] + start.observation.text.encode() for start in found}
        assert not sides["train"] & sides["eval"]
        keys = {e.draws().bit_generator.state["state"]["state"] for s in sides for e in episodes(name, {}, 50, s)}
        assert len(keys) == 150


def phrasings(name: str) -> tuple[str, ...]:
    return zoom.PHRASINGS if name == "zoom" else gui_agent.PHRASINGS


def test_hostile_text_is_told_that_it_is_no_action_and_costs_a_step(referee: Referee) -> None:
    for name, options in KINDS:
        (start,) = referee.reset(episodes(name, options, 1))
        for text, after in zip(HOSTILE, referee.step([(start, text) for text in HOSTILE]), strict=True):
            assert after.invalid or after.reward == 0.0, text[:60]
            assert not after.error and after.steps == 1 and len(after.observation.text) < 400
            if after.invalid:
                assert after.state == start.state and after.observation.text.startswith("invalid action: ")
                assert find(name).HELP in after.observation.text
    moment = start
    while not moment.done:
        (moment,) = referee.step([(moment, "nonsense")])
    assert moment.steps == moment.limit == 5 and moment.reward == 0.0


def test_an_action_stands_behind_the_thinking_or_in_a_box() -> None:
    assert worker.action_of("<think>it is in the north</think>\nzoom north") == "zoom north"
    assert worker.action_of("so <|begin_of_box|>7<|end_of_box|>") == "7"
    assert worker.action_of("<answer>7</answer>") == "7"
    with pytest.raises(InvalidAction, match="not closed"):
        worker.action_of("<think>zoom north")


def test_an_episode_that_hangs_or_breaks_is_over_without_reward() -> None:
    """A world with faults, put in the place of one in the processes; its time limit fires."""
    faults = (
        "import time; from megatron_glmv.rl.environments import registry\n"
        "from megatron_glmv.rl.environments.zoom import Zoom\n"
        "class Faulty(Zoom):\n"
        "    def step(self, state, action):\n"
        "        if action == 'hang': time.sleep(60)\n"
        "        if action == 'hungry': return bytearray(1 << 40)\n"
        "        if action == 'broken': return None\n"
        "        raise ZeroDivisionError\n"
        "    def reset(self, episode):\n"
        "        if episode.index == 9: raise KeyError('no world')\n"
        "        return super().reset(episode)\n"
        "registry.ENVIRONMENTS['zoom'] = Faulty()\n"
    )
    boot = BOOT.replace(
        "from megatron_glmv.rl.environments.worker", f"exec({faults!r}); from megatron_glmv.rl.environments.worker"
    )
    referee = Referee(workers=1, seconds=1.0, boot=boot)
    try:
        start, broken = referee.reset([Episode("zoom"), Episode("zoom", index=9)])
        assert not start.done and broken.done and "no world" in broken.error
        texts = ("hang", "hungry", "broken", "anything")
        hung, hungry, wrong, other = referee.step([(start, text) for text in texts])
        assert hung.done and hung.reward == 0.0 and hung.error == "timeout: took longer than 1 s"
        assert hungry.done and "memory" in hungry.error and wrong.done and "AttributeError" in wrong.error
        assert other.invalid and "ZeroDivisionError" in other.observation.text
    finally:
        referee.close()


def test_what_no_episode_is_says_why() -> None:
    for value, said in (
        ({"name": "zom"}, "nearest is 'zoom'"),
        ({"name": "zoom", "options": {"object": 2}}, "knows no object"),
        ({"name": "zoom", "split": "test"}, "split 'test'"),
        ({"name": "zoom", "index": -1}, "must not be negative"),
    ):
        with pytest.raises(ValueError, match=said):
            episode_of(value)
    with pytest.raises(ValueError, match="objects=9"):
        find("zoom").reset(Episode("zoom", options={"objects": 9}))
    with pytest.raises(ValueError, match="platform must be one of"):
        find("gui_agent").reset(Episode("gui_agent", options={"platform": "tv"}))
    assert set(ENVIRONMENTS) == {"zoom", "gui_agent"}


def test_demonstrations_are_episodes_of_their_own_and_play_as_written() -> None:
    """Each answer, put to the world again, gives the next message; noise is possible actions; prompts have others."""
    tool = load_tool("make_episodes")
    for name, options in KINDS:
        noisy = list(tool.demonstrations(name, 0, options, 8, 0.5))
        best = list(tool.demonstrations(name, 0, options, 3, 0.0))
        assert noisy[0][0]["id"].endswith(str(tool.APART)), "no episode of a prompt file"
        assert max(len(c["messages"]) for c, _ in noisy) > max(len(c["messages"]) for c, _ in best)
        for n, (conversation, media) in enumerate([*noisy, *best]):
            index = tool.APART + (n if n < len(noisy) else n - len(noisy))
            episode = episode_of({"name": name, "index": index, "options": options})
            start = find(name).reset(episode)
            state, seen, reward, shown = start.state, start.observation, 0.0, dict[str, bytes]()
            for user, assistant in zip(conversation["messages"][::2], conversation["messages"][1::2], strict=True):
                assert user == tool.shown(seen, shown) and assistant["role"] == "assistant"
                after = find(name).step(state, assistant["content"])
                state, seen, reward = after.state, after.observation, after.reward
            assert shown == media and (n < len(noisy) or reward == 1.0)
    assert tool.line("zoom", "eval", 0, 3, {})["environment"]["split"] == "eval"
