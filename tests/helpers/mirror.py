"""A world in which every text is an action: it answers with a picture and a text that depend on what was said.

For tests, as a random model never says anything that means something elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from megatron_glmv.data.synthetic.encode import PNG, encode_image
from megatron_glmv.data.types import Json
from megatron_glmv.rl.environments.referee import BOOT
from megatron_glmv.rl.environments.types import Episode, InvalidAction, Observation, Start, Step

SIZES = ((24, 32), (24, 32), (40, 24), (48, 48))
PLACE = str(Path(__file__).resolve().parents[1])
_WORLD = (
    f"sys.path.insert(0, {PLACE!r}); from helpers.mirror import Mirror\n"
    "from megatron_glmv.rl.environments.registry import ENVIRONMENTS; ENVIRONMENTS['mirror'] = Mirror()\n"
)
MIRROR_BOOT = BOOT.replace("from megatron_glmv", f"exec({_WORLD!r}); from megatron_glmv", 1)
"""Of a referee that has this world."""


class Mirror:
    NAME: ClassVar[str] = "mirror"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"steps": 4}
    HELP: ClassVar[str] = "say anything"

    def reset(self, episode: Episode) -> Start:
        steps = int({**self.DEFAULTS, **episode.options}["steps"])
        state: Json = {"said": [f"{episode.split} {episode.index}"], "steps": steps}
        return Start(state, _seen(state), steps + 1)

    def step(self, state: Json, action: str) -> Step:
        """Every fifth text is refused; the reward is a function of all that was said."""
        if crc32(action.encode()) % 5 == 0:
            raise InvalidAction("the fifth")
        after = {**state, "said": [*state["said"], action]}
        done = len(after["said"]) > state["steps"]
        return Step(after, _seen(after), float(crc32("".join(after["said"]).encode()) & 1), done)

    def expert(self, state: Json) -> str:
        return "right"

    def other(self, state: Json, rng: np.random.Generator) -> str:
        return "wrong"


def _seen(state: Json) -> Observation:
    rng = np.random.default_rng(crc32("".join(state["said"]).encode()))
    pictures = [
        encode_image(rng.integers(0, 256, (*SIZES[int(rng.integers(len(SIZES)))], 3), dtype=np.uint8), PNG)
        for _ in range(int(rng.integers(0, 3)))
    ]
    return Observation(f"Which colour is it? {len(state['said'])}", tuple(pictures))
