"""Every environment by name."""

from __future__ import annotations

import difflib

from megatron_glmv.data.types import Json
from megatron_glmv.rl.environments.gui_agent import GuiAgent
from megatron_glmv.rl.environments.types import Environment, Episode
from megatron_glmv.rl.environments.zoom import Zoom

ENVIRONMENTS: dict[str, Environment] = {environment.NAME: environment for environment in (GuiAgent(), Zoom())}


def find(name: str) -> Environment:
    """Raises ValueError with the nearest name."""
    if name not in ENVIRONMENTS:
        near = next(iter(difflib.get_close_matches(name[:64], ENVIRONMENTS, n=1, cutoff=0.0)))
        raise ValueError(f"no environment {name[:64]!r}; the nearest is {near!r}")
    return ENVIRONMENTS[name]


def episode_of(value: Json) -> Episode:
    """{"name", "split", "seed", "index", "options"} as an episode. Raises ValueError, KeyError or TypeError."""
    environment = find(str(value["name"]))
    unknown = set(value) - {"name", "split", "seed", "index", "options"}
    options = dict(value.get("options") or {})
    if unknown or (unknown := set(options) - set(environment.DEFAULTS)):
        raise ValueError(f"an episode of {environment.NAME} knows no {', '.join(sorted(unknown))}")
    seed, index = int(value.get("seed", 0)), int(value.get("index", 0))
    episode = Episode(environment.NAME, str(value.get("split", "train")), seed, index, options)
    episode.draws()  # refuses a split or a number that can't be
    return episode
