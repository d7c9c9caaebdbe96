"""Makes the procedural demo set: shards to train and validate on, an evaluation file with its media, and a
tokenizer."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.synthetic.demo import make_demo

SAMPLES = 40_000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the set; a finished one is kept")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="training samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    options = parser.parse_args(arguments)
    text = options.samples // 20
    videos = (options.samples - text) // 3
    began = time.monotonic()
    try:
        made = make_demo(
            options.out,
            train_images=options.samples - text - videos,
            train_videos=videos,
            train_text=text,
            seed=options.seed,
            workers=options.workers,
        )
    except DataError as error:
        print(f"make_demo_data: {error}", file=sys.stderr)
        return error.exit_code
    families = ", ".join(f"{count} {family}" for family, count in made.samples.items())
    verb = "found" if made.reused else "made"
    print(f"{verb} {options.out} in {time.monotonic() - began:.1f} s: {families} to train on,", end=" ")
    print(f"{made.val_samples} to validate, {made.eval_lines} questions, {made.media_bytes / 2**20:.1f} MiB of media")
    return 0


if __name__ == "__main__":
    sys.exit(main())
