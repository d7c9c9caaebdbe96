"""Splits a `glmv eval` file into the prompts of `stage=rlcs` and a held-out set, by scene: no picture is in both.

    python tools/make_rl_prompts.py data_cache/demo/eval/eval.jsonl data_cache/demo/rl

An id is FAMILY-SCENE-TASK, as the demo set has it. Media are named by absolute paths.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron_glmv.evaluate.dataset import with_absolute_media


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heldout", type=float, default=0.3, help="share of the scenes of each family")
    parser.add_argument("--tasks", nargs="+", help="only these; default: all")
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.questions.read_text(encoding="utf-8").splitlines()]
    if given.tasks and not (lines := [line for line in lines if line.get("task") in given.tasks]):
        parser.error(f"no line of {given.questions} has a task of {', '.join(given.tasks)}")
    scenes: dict[str, set[int]] = {}
    for line in lines:
        family, scene, _ = line["id"].split("-", 2)
        scenes.setdefault(family, set()).add(int(scene))
    first = {family: sorted(found)[-max(1, round(given.heldout * len(found)))] for family, found in scenes.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"prompts": [], "heldout": []}
    for line in lines:
        family, scene, _ = line["id"].split("-", 2)
        line["messages"] = with_absolute_media(line["messages"], given.questions.parent.resolve())
        line.setdefault("verifier", "exact")
        part = "heldout" if int(scene) >= first[family] else "prompts"
        parts[part].append(json.dumps(line, ensure_ascii=False) + "\n")
    for name, made in parts.items():
        (given.out / f"{name}.jsonl").write_text("".join(made), encoding="utf-8")
        print(f"{len(made)} lines in {given.out / name}.jsonl")


if __name__ == "__main__":
    main()
