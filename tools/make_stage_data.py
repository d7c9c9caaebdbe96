"""Makes the sets of the stages beside a demo set: the paper's domains with each, and held-out questions of them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.stage_sets.domains import HELD_OUT, write_questions
from megatron_glmv.data.stage_sets.make import HELD, LONG, PRETRAIN, SFT, STAGES, Recipe, make_set

SAMPLES = {PRETRAIN: 16_000, LONG: 5_000, SFT: 16_000}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("data_cache/demo"), help="the demo set (%(default)s)")
    parser.add_argument("--stage", choices=STAGES, action="append", help="may be repeated; default: all")
    parser.add_argument("--samples", type=int, help=f"to train on (default: {SAMPLES})")
    parser.add_argument("--pack-tokens", type=int, default=6144, help="longest sample of the long set (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="questions of each domain (%(default)s)")
    options = parser.parse_args(arguments)
    for stage in options.stage or STAGES:
        began = time.monotonic()
        try:
            recipe = Recipe(stage, options.samples or SAMPLES[stage], options.pack_tokens, options.seed)
            made = make_set(options.demo, recipe, options.workers)
        except (DataError, ValueError) as error:
            print(f"make_stage_data: {error}", file=sys.stderr)
            return 65
        kinds = ", ".join(f"{count} {kind}" for kind, count in made.items())
        print(f"{options.demo / stage}: {kinds}, {time.monotonic() - began:.1f} s", flush=True)
    count = write_questions(options.demo / HELD, options.held_out, options.seed)
    print(f"{options.demo / HELD}: {count} questions", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
