"""`glmv doctor --cluster`: the preflight of a job, on nodes of the cluster, without a job behind it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import yaml

from megatron_glmv.config.load import compose, to_json
from megatron_glmv.launch.freeze import scripts_dir
from megatron_glmv.launch.job import Job, Shape, sbatch_options
from megatron_glmv.launch.slurm import SlurmError
from megatron_glmv.resilience.exit_codes import ExitCode

ASKED = (
    "--account=", "--partition=", "--qos=", "--constraint=", "--reservation=", "--exclude=", "--exclusive",
    "--gpus-per-node=", "--mem=",
)  # fmt: skip
"""Options of the cluster's sbatch call that say which nodes, and what of them."""


def check_cluster(overrides: list[str], nodes: int) -> int:
    """Runs the preflight on `nodes` nodes and prints what each found; 0, or the hang code and the nodes at fault.

    `overrides` choose the cluster, and with data.path the shards to look at. What was found stays in a folder below
    runs/doctor, which therefore has to lie where all nodes see it. Raises ConfigError, SlurmError.
    """
    config = compose(["experiment=tiny_pretrain", "data.path=''", *overrides])
    folder = Path("runs/doctor", f"{datetime.now():%Y%m%d-%H%M%S}").absolute()
    cluster = dataclasses.replace(config.cluster, nodes=nodes)
    job = Job(
        name="doctor",
        shape=Shape(nodes, cluster.ranks_per_node),
        cluster=cluster,
        run_dir=folder,
        submission=folder,
        python=sys.executable,
    )
    chosen = [option for option in sbatch_options(job) if option.startswith(ASKED)]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_json(config)), encoding="utf-8")
    command = [
        "srun", "--job-name=doctor", f"--nodes={nodes}", "--ntasks-per-node=1", "--time=00:10:00",
        "--kill-on-bad-exit=0", *chosen, *cluster.extra,
        sys.executable, str(scripts_dir() / "preflight.py"), str(folder), str(folder / "config.yaml"), str(folder),
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM_", "SBATCH_"))}
    root = Path(__file__).resolve().parents[2]
    env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    try:
        code = subprocess.run(command, env=env, check=False).returncode
    except FileNotFoundError:
        raise SlurmError("srun is not on PATH; is this a machine that can submit to Slurm?") from None
    bad = sorted(file.read_text().strip() for file in folder.glob("bad_node.*"))
    if bad:
        print(f"not fit: {', '.join(bad)}; cluster.exclude={','.join(bad)} leaves them out")
    elif code == 0:
        print(f"{nodes} nodes are fit")
    return int(ExitCode.OK) if code == 0 and not bad else int(ExitCode.HANG)
