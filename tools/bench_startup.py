"""Where the seconds go from sbatch to the first training step, on this machine's Slurm; and what importing costs alone.

    python tools/bench_startup.py --data data_cache/demo/train [--cluster local] [key=value ...]

Submits a short run, waits for it, and prints each phase of rank 0 in wall and CPU seconds. The ratio at the end
compares importing and building (process start to model) with importing torch and the parts of megatron-core that
training needs in a process of its own, in the same run; in CPU seconds, because other work on the machine stretches
wall time. A data set that is used for the first time is measured once (data): its samples' lengths are kept beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ALONE = (
    "import time; import torch, megatron.core, megatron.core.models.gpt, megatron.core.optimizer, "
    "megatron.core.distributed, megatron.core.pipeline_parallel; print(time.process_time())"
)
"""The parts of megatron-core that any training run imports; on their own they need no GPU."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="shards, as glmv data make writes them")
    parser.add_argument("--cluster", default="local")
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_args(arguments)
    run_dir = Path(tempfile.mkdtemp(prefix="startup_", dir=Path.cwd())) / "run"
    glmv = [sys.executable, "-m", "megatron_glmv.cli"]
    alone = [float(subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True, text=True).stdout)
             for _ in range(3)]  # fmt: skip
    before = time.time()
    argv = [
        *glmv, "submit", "experiment=tiny_pretrain", f"cluster={options.cluster}",
        f"data.path={options.data.absolute()}",
        f"run_dir={run_dir}", "train.steps=2", "checkpoint.every=0", "data.val_path=", "cluster.notice=0",
        "cluster.preflight=false", *options.overrides,
    ]  # fmt: skip
    subprocess.run(argv, check=True)
    submitted = time.time()
    file = run_dir / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= 1):
        ended = sorted((run_dir / "logs").glob("*/exit_code"))
        if ended and not file.exists():
            print(f"the run ended: {ended[-1].read_text()}", file=sys.stderr)
            return 1
        time.sleep(0.2)
    startup = json.loads((run_dir / "startup.json").read_text())
    first = json.loads(file.read_text().splitlines()[0])
    marks = startup["marks"]
    rows = [("sbatch", submitted - before, None), ("queue, job script, srun", startup["began"] - submitted, None)]
    last = (0.0, 0.0)
    for phase in ("import", "groups", "model", "data"):
        wall, cpu = marks[phase]
        rows.append((phase, wall - last[0], cpu - last[1]))
        last = (wall, cpu)
    rows.append(("first step", first["step_time_s"] + first["data_wait_s"], None))
    table = Table("phase", "wall s", "CPU s of rank 0", title=f"{' '.join(options.overrides) or 'one rank'}")
    for phase, wall, used in rows:
        table.add_row(phase, f"{wall:.2f}", "" if used is None else f"{used:.2f}")
    Console().print(table)
    ours, theirs = marks["model"][1], sorted(alone)[1]
    print(f"import and build {ours:.2f} CPU s, torch and megatron-core alone {theirs:.2f}: ratio {ours / theirs:.2f}")
    print(f"left in {run_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
