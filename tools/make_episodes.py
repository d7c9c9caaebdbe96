"""Episodes for `stage=rlcs` (prompts and a held-out set), and demonstrations to tune a model on first.

    python tools/make_episodes.py --out data_cache/demo/episodes --environment zoom
    python tools/make_episodes.py --out data_cache/demo/episodes --environment gui_agent --options '{"platform": "web"}'

Writes prompts.jsonl (split train) and heldout.jsonl (split eval: other streams, other templates), both extended by a
second call for another environment, and demonstrations/ENVIRONMENT: whole conversations of training episodes that the
prompts don't have. With probability --noise a turn's action is a possible one that is not the best; the world goes on
from there. A model tuned on them knows the right action and often samples another: what RL can give back.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_glmv.data.index import build_index
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.synthetic.seeds import EVAL, TRAIN
from megatron_glmv.data.types import IMAGE, Json
from megatron_glmv.rl.environments.registry import ENVIRONMENTS, episode_of, find
from megatron_glmv.rl.environments.types import Episode, Observation

APART = 1_000_000
"""First index of the demonstrations' episodes."""


def line(name: str, split: str, seed: int, index: int, options: Json) -> Json:
    environment = {"name": name, "split": split, "seed": seed, "index": index, "options": options}
    return {"id": f"{name}-{split}-{index:06d}", "environment": environment}


def demonstration(episode: Episode, noise: float) -> tuple[Json, dict[str, bytes]]:
    """A conversation up to the episode's end, and its media."""
    environment, rng = find(episode.environment), episode.draws("demonstration")
    start = environment.reset(episode)
    state, observation, messages, media = start.state, start.observation, list[Json](), dict[str, bytes]()
    for _ in range(start.limit):
        messages.append(shown(observation, media))
        action = environment.other(state, rng) if rng.random() < noise else environment.expert(state)
        messages.append({"role": "assistant", "content": action})
        after = environment.step(state, action)
        state, observation = after.state, after.observation
        if after.done:
            break
    key = f"{episode.environment}-{episode.index:07d}"
    return {"id": key, "domain": episode.environment, "messages": messages}, media


def shown(observation: Observation, media: dict[str, bytes]) -> Json:
    """A user's message; its pictures join `media`."""
    parts: list[dict[str, Any]] = []
    for image in observation.images:
        name = f"{len(media)}.png"
        media[name] = image
        parts.append({"type": IMAGE, IMAGE: name})
    return {"role": "user", "content": [*parts, {"type": "text", "text": observation.text}]}


def demonstrations(
    name: str, seed: int, options: Json, count: int, noise: float
) -> Iterator[tuple[Json, dict[str, bytes]]]:
    for index in range(APART, APART + count):
        value = line(name, TRAIN, seed, index, options)["environment"]
        yield demonstration(episode_of(value), noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--environment", required=True, choices=sorted(ENVIRONMENTS))
    parser.add_argument("--options", type=json.loads, default={}, help="as JSON; default: the environment's")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--heldout", type=int, default=100)
    parser.add_argument("--demonstrations", type=int, default=3000)
    parser.add_argument("--noise", type=float, default=0.5, help="share of actions that are not the best")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    name, seed, options = given.environment, given.seed, given.options
    try:
        find(name).reset(episode_of(line(name, TRAIN, seed, 0, options)["environment"]))
    except ValueError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    for file, split, count in (("prompts", TRAIN, given.prompts), ("heldout", EVAL, given.heldout)):
        path = given.out / f"{file}.jsonl"
        others = (
            [text for text in path.read_text().splitlines() if json.loads(text)["environment"]["name"] != name]
            if path.exists()
            else []
        )
        made = [json.dumps(line(name, split, seed, index, options)) for index in range(count)]
        path.write_text("\n".join([*others, *made]) + "\n", encoding="utf-8")
        print(f"{count} episodes of {name} in {path}")
    folder = given.out / "demonstrations" / name
    with ShardWriter(folder, samples_per_shard=1000) as writer:
        made_all = demonstrations(name, seed, options, given.demonstrations, given.noise)
        for conversation, media in track(made_all, "demonstrations", given.demonstrations):
            writer.add(conversation["id"], conversation, media)
    build_index(folder, 0)
    print(f"{given.demonstrations} demonstrations in {folder}")


if __name__ == "__main__":
    main()
