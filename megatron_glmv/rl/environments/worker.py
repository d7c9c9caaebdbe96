"""A process in which environments run: reads one JSON object a line, resets or steps, writes one JSON object a line.

Actions are untrusted text. Here they meet the limits of time and memory of the pool (rl/rewards/pool.py).
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

from megatron_glmv.data.types import Json
from megatron_glmv.rl.environments.registry import episode_of, find
from megatron_glmv.rl.environments.types import InvalidAction, Observation
from megatron_glmv.rl.rewards.extraction import take_apart
from megatron_glmv.rl.rewards.types import OPTIONAL
from megatron_glmv.rl.rewards.worker import allow_cpu, limit_process, take_pipes

MAX_CHARS = 4_000
"""Of an action; the thinking in front of it is not counted."""


def main() -> None:
    """Serve until the pipe closes. argv: package root, address space in MiB."""
    inbox, outbox = take_pipes()
    limit_process(int(sys.argv[2]) << 20)
    find("gui_agent").reset(episode_of({"name": "gui_agent", "options": {"screens": "buttons"}}))  # loads the fonts
    outbox.write(b"{}\n")
    for line in inbox:
        request = json.loads(line)
        allow_cpu(float(request["seconds"]))
        outbox.write(json.dumps(answer(request)).encode() + b"\n")


def answer(request: Json) -> Json:
    """What the environment makes of it. Whatever it raises is said, not raised."""
    try:
        return reset(request) if "episode" in request else step(request)
    except MemoryError:
        return {"error": "out of memory"}
    except Exception as error:  # an episode's options, or an environment with a fault
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def reset(request: Json) -> Json:
    episode = episode_of(request["episode"])
    start = find(episode.environment).reset(episode)
    return {"state": start.state, "limit": start.limit, **_shown(start.observation)}


def step(request: Json) -> Json:
    """An action that can't be read or done leaves the state as it is, and the model is told."""
    environment = find(request["environment"])
    try:
        after = environment.step(request["state"], action_of(request["response"]))
    except MemoryError:
        raise
    except InvalidAction as error:
        return _invalid(request["state"], str(error), environment.HELP)
    except Exception as error:  # whatever hostile text makes a parser raise
        return _invalid(request["state"], type(error).__name__, environment.HELP)
    return {"state": after.state, "reward": after.reward, "done": after.done, **_shown(after.observation)}


def action_of(response: str) -> str:
    """What stands behind the thinking, or in the box. Raises InvalidAction."""
    parts = take_apart(response, OPTIONAL)
    if parts.fault or not parts.final:
        raise InvalidAction(parts.fault or "an empty action")
    if len(parts.final) > MAX_CHARS:
        raise InvalidAction(f"more than {MAX_CHARS} characters")
    return parts.final


def _invalid(state: Json, reason: str, help: str) -> Json:
    text = f"invalid action: {reason}. {help}"
    return {"state": state, "reward": 0.0, "done": False, "invalid": True, **_shown(Observation(text))}


def _shown(observation: Observation) -> Json:
    images: list[Any] = [base64.b64encode(image).decode() for image in observation.images]
    return {"text": observation.text, "images": images}
