"""An agent in a made-up program: screens full of buttons, each of which opens another screen.

The goal names the buttons to press, one after another. A wrong one opens a screen that is not on the way; from there
it is back to the last one. Reward 1 where the last button of the goal is pressed, 0 where the steps are used up.
Actions as `gui_actions.py` reads them; a click counts for the button that its middle lies in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from megatron_glmv.data.synthetic import canvas
from megatron_glmv.data.synthetic.canvas import Pixels
from megatron_glmv.data.synthetic.domains.gui import Screen, Widget, draw_buttons, draw_colours
from megatron_glmv.data.synthetic.domains.lattice import choose
from megatron_glmv.data.synthetic.domains.objects import coordinates
from megatron_glmv.data.synthetic.domains.problem import OPENERS, Draw
from megatron_glmv.data.synthetic.encode import PNG, encode_image
from megatron_glmv.data.types import Json
from megatron_glmv.rl.environments.gui_actions import PLATFORMS, Back, Click, read_action, write_back, write_click
from megatron_glmv.rl.environments.types import Episode, InvalidAction, Observation, Start, Step
from megatron_glmv.rl.rewards.boxes import inside

SCREENS = {"colours": (0, draw_colours), "buttons": (1, draw_buttons)}
"""Kind of the screens -> the tier they are drawn at, and who draws them."""
PHRASINGS = ("press {}", "tap {}", "open {}", "click on {}")
MOST_ACTIONS = 6
MARK = 14
"""Pixels of a label's height."""


class GuiAgent:
    NAME: ClassVar[str] = "gui_agent"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"platform": "mobile", "screens": "colours", "actions": 2, "slack": 2}
    """platform: mobile, pc or web, the form of actions; screens: colours or buttons; actions: buttons to the goal;
    slack: steps beyond these."""
    HELP: ClassVar[str] = "click a button or go back"

    def reset(self, episode: Episode) -> Start:
        options = {**self.DEFAULTS, **episode.options}
        actions, slack = int(options["actions"]), int(options["slack"])
        if options["platform"] not in PLATFORMS or options["screens"] not in SCREENS:
            raise ValueError(f"platform must be one of {', '.join(PLATFORMS)}, screens of {', '.join(SCREENS)}")
        if not 1 <= actions <= MOST_ACTIONS or slack < 0:
            raise ValueError(f"actions={actions} must be 1 to {MOST_ACTIONS}, and slack={slack} not negative")
        state: Json = {
            "episode": [episode.split, episode.seed, episode.index],
            "platform": options["platform"],
            "screens": options["screens"],
            "path": [],
            "goal": [],
        }
        rng = episode.draws("goal")
        for _ in range(actions):
            names = [widget.name for widget in screen_of(state, state["goal"]).widgets]
            state = {**state, "goal": [*state["goal"], names[int(rng.integers(len(names)))]]}
        opener, phrasing = choose(rng, episode.split, (len(OPENERS), len(PHRASINGS)))
        asked = OPENERS[opener] + PHRASINGS[phrasing].format(" then ".join(state["goal"]))
        return Start(state, self._shown(state, asked), actions + slack)

    def step(self, state: Json, action: str) -> Step:
        said, path, goal = read_action(action, state["platform"]), state["path"], state["goal"]
        if isinstance(said, Back):
            if not path:
                raise InvalidAction("this is the first screen")
            moved = {**state, "path": path[:-1]}
            return Step(moved, self._shown(moved, "went back"))
        pressed = _pressed(screen_of(state, path), said)
        if pressed is None:
            return Step(state, Observation("nothing is there"))
        if [*path, pressed.name] == goal:
            return Step(state, Observation("done"), 1.0, done=True)
        moved = {**state, "path": [*path, pressed.name]}
        return Step(moved, self._shown(moved, f"opened {pressed.name}"))

    def expert(self, state: Json) -> str:
        path, goal = state["path"], state["goal"]
        if path != goal[: len(path)]:
            return write_back(state["platform"])
        screen = screen_of(state, path)
        return _click(state, screen, next(w for w in screen.widgets if w.name == goal[len(path)]))

    def other(self, state: Json, rng: np.random.Generator) -> str:
        screen, best = screen_of(state, state["path"]), self.expert(state)
        clicks = [_click(state, screen, widget) for widget in screen.widgets]
        possible = [click for click in clicks if click != best]
        return possible[int(rng.integers(len(possible)))]

    def _shown(self, state: Json, text: str) -> Observation:
        screen = screen_of(state, state["path"])
        pixels = screen.media[0].pixels
        marked = _marked(pixels, screen.widgets) if state["platform"] == "web" else pixels
        return Observation(text, (encode_image(marked, PNG),))


def screen_of(state: Json, path: Sequence[str]) -> Screen:
    """The screen behind these buttons. All screens of an episode have one style."""
    episode = Episode(GuiAgent.NAME, *state["episode"])
    tier, draw = SCREENS[state["screens"]]
    drawing = Draw(episode.draws("/".join(("screen", *path))), tier, episode.split)
    drawing.style = Draw(episode.draws("style"), tier, episode.split).style
    return draw(drawing)


def _pressed(screen: Screen, click: Click) -> Widget | None:
    if click.label is not None:
        return screen.widgets[click.label - 1] if 1 <= click.label <= len(screen.widgets) else None
    assert click.at is not None
    point = (click.at[0] * screen.side / 1000, click.at[1] * screen.side / 1000)
    return next((widget for widget in screen.widgets if inside(point, widget.at)), None)


def _click(state: Json, screen: Screen, widget: Widget) -> str:
    box = coordinates(widget.at, screen.side, screen.side)
    return write_click(list(box), screen.widgets.index(widget) + 1, state["platform"])


def _marked(pixels: Pixels, widgets: Sequence[Widget]) -> Pixels:
    """With a white label in the upper left corner of each."""
    picture = pixels.copy()
    for number, widget in enumerate(widgets, start=1):
        left, top = round(widget.at[0]) + 3, round(widget.at[1]) + 3
        glyph = canvas.digit_mask(str(number), MARK)
        canvas.bar(picture, top - 2, left - 2, MARK + 4, glyph.shape[1] + 4, (0, 0, 0))
        canvas.paste(picture, top, left, glyph, canvas.WHITE)
    return picture
