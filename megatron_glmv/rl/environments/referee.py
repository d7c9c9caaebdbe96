"""Plays episodes in processes of their own, under limits of time and steps, and plays them again from their actions."""

from __future__ import annotations

import base64
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from megatron_glmv.data.types import Json
from megatron_glmv.rl.environments.types import Episode, Observation
from megatron_glmv.rl.rewards.pool import TIMEOUT, Call, Pool, Reply

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from megatron_glmv.rl.environments.worker import main; main()"
KEPT = 4096
"""Moments that are remembered: a group's answers begin alike and often act alike. Some 10 kB each."""
NOTHING = Observation("")


@dataclass(frozen=True)
class Moment:
    """Where an episode stands, and what is to be seen there."""

    environment: str
    state: Json
    observation: Observation
    limit: int
    """Steps after which it is over."""
    steps: int = 0
    reward: float = 0.0
    done: bool = False
    invalid: bool = False
    """The last action was none."""
    error: str = ""
    """Why it could not go on; the reward is 0."""


class Referee:
    """Processes start with the first call. May be called from any thread."""

    def __init__(
        self, *, workers: int = 2, seconds: float = 10.0, most_steps: int = 8, memory_mib: int = 2048, boot: str = BOOT
    ) -> None:
        self.seconds, self.most_steps = seconds, most_steps
        self._pool = Pool(workers, memory_mib, boot)
        self._known: OrderedDict[str, Json] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        self._pool.close()

    def reset(self, episodes: Sequence[Episode]) -> list[Moment]:
        """The beginning of each; one that can't begin is done, with its error."""
        asked: list[Json] = [
            {"episode": {"name": e["environment"], **{k: v for k, v in e.items() if k != "environment"}}}
            for e in map(asdict, episodes)
        ]
        made = []
        for episode, found in zip(episodes, self._ask(asked), strict=True):
            moment = Moment(episode.environment, {}, NOTHING, 0, done=True, error=str(found.get("error", "")))
            if not moment.error:
                limit = min(int(found["limit"]), self.most_steps)
                moment = replace(moment, state=found["state"], observation=_seen(found), limit=limit, done=False)
            made.append(moment)
        return made

    def step(self, acted: Sequence[tuple[Moment, str]]) -> list[Moment]:
        """What follows each response. An episode that takes too long or breaks is over, with reward 0."""
        asked: list[Json] = [
            {"environment": moment.environment, "state": moment.state, "response": response}
            for moment, response in acted
        ]
        return [_after(moment, found) for (moment, _), found in zip(acted, self._ask(asked), strict=True)]

    def replay(self, played: Sequence[tuple[Episode, Sequence[str]]]) -> list[list[Moment]]:
        """All moments of episodes whose responses are known, the beginning first."""
        found = [[start] for start in self.reset([episode for episode, _ in played])]
        for turn in range(max((len(responses) for _, responses in played), default=0)):
            going = [i for i, (_, responses) in enumerate(played) if turn < len(responses)]
            after = self.step([(found[i][-1], played[i][1][turn]) for i in going])
            for i, moment in zip(going, after, strict=True):
                found[i].append(moment)
        return found

    def _ask(self, asked: Sequence[Json]) -> list[Json]:
        """Each thing once; answers are functions of what is asked, so that they may be remembered."""
        keys = [json.dumps(request, sort_keys=True) for request in asked]
        with self._lock:
            known = {key: self._known[key] for key in keys if key in self._known}
        missing = {key: request for key, request in zip(keys, asked, strict=True) if key not in known}
        if missing:
            replies = self._pool.run([Call(request, self.seconds) for request in missing.values()])
            known |= {key: self._read(reply) for key, reply in zip(missing, replies, strict=True)}
        with self._lock:
            for key in missing:
                if "failure" not in known[key]:
                    self._known[key] = known[key]
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return [known[key] for key in keys]

    def _read(self, reply: Reply) -> Json:
        if reply.value is not None:
            return reply.value
        said = f"took longer than {self.seconds:g} s" if reply.failure == TIMEOUT else "its process died"
        return {"error": f"{reply.failure}: {said}", "failure": reply.failure}


def _after(moment: Moment, found: Json) -> Moment:
    steps = moment.steps + 1
    if "error" in found:
        return replace(moment, observation=NOTHING, steps=steps, done=True, error=str(found["error"]))
    done = bool(found["done"])
    reward = min(1.0, max(0.0, float(found["reward"]))) if done else 0.0
    return replace(
        moment,
        state=found["state"],
        observation=_seen(found),
        steps=steps,
        reward=reward,
        done=done or steps >= moment.limit,
        invalid=bool(found.get("invalid")),
    )


def _seen(found: Json) -> Observation:
    return Observation(found["text"], tuple(base64.b64decode(image) for image in found["images"]))
