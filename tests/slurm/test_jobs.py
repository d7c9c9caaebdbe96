"""Real jobs on a real Slurm: what is trained, what is run again and what is not, and who may write.

Runs are those of tests/faults/training.py: ten small steps, a checkpoint every five. Every fault is shown to have
happened by the ledger, the ranks' own records or Slurm.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults.training import SMALL, alive, metrics, run
from slurm.cluster import Cluster

from megatron_glmv.checkpoint.hf.exporting import ExportOptions, export_hf
from megatron_glmv.checkpoint.hf.verify import verify as verify_checkpoints
from megatron_glmv.checkpoint.reader import open_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
FOUR = ("parallel.tensor=2", "parallel.pipeline=2", "cluster.nodes=2", "cluster.ranks_per_node=2", "parallel.data=1")
TWO = ("parallel.data=2", "cluster.ranks_per_node=2")
PLAIN = ("cluster.preflight=false", "cluster.notice=0")


def glmv(cluster: Cluster, *arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_glmv.cli", *arguments]
    env = {**cluster.env, "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def submit(cluster: Cluster, shards: Path, run_dir: Path, *options: str, **where: Path) -> str:
    """The number of the job."""
    quoted = str(run_dir).replace("'", "\\'")  # for Hydra's grammar
    base = [*SMALL, f"data.path={shards}", f"run_dir='{quoted}'", *options]
    done = glmv(cluster, "submit", *base, cwd=run_dir.parent, **where)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1].rstrip(":")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ranks_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    return json.loads((run_dir / "ranks.json").read_text())


def log(run_dir: Path) -> str:
    return "\n".join(f"== {f}\n{f.read_text(errors='replace')}" for f in sorted((run_dir / "logs").rglob("*.log")))


def wait_for_step(cluster: Cluster, run_dir: Path, step: int) -> None:
    try:
        cluster.wait(f"step {step}", lambda: len(metrics(run_dir)) >= step)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log(run_dir)}") from error


def completed(cluster: Cluster, job: str, run_dir: Path, restarts: int) -> None:
    """The job has ended well after so many restarts, with each step once."""
    fields = cluster.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout=240)
    assert fields["JobState"] == "COMPLETED", log(run_dir)
    assert int(fields["Restarts"]) == restarts, log(run_dir)
    assert [record["step"] for record in metrics(run_dir)] == list(range(1, 11))
    assert lines(run_dir / "attempts.jsonl")[-1]["exit_code"] == 0


@pytest.fixture(scope="module")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("reference") / "run"
    run(shards, directory)
    return metrics(directory)


def near(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    return [a["loss"] for a in ours] == pytest.approx([b["loss"] for b in theirs], rel=1e-5)


def test_four_ranks_on_two_nodes_train_what_one_process_trains(
    cluster: Cluster, shards: Path, tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """With preflight, in a directory whose name a shell would take apart."""
    run_dir = tmp_path / 'it\'s $(touch x) a; "run"'
    job = submit(cluster, shards, run_dir, *FOUR)
    completed(cluster, job, run_dir, restarts=0)
    ranks = json.loads((run_dir / "ranks.json").read_text())
    assert len(ranks) == 4 and len({rank["host"] for rank in ranks.values()}) == 2
    assert {rank["host"] for rank in ranks.values()} <= set(cluster.nodes)
    assert near(metrics(run_dir), reference)
    assert "sum over 2 nodes" in log(run_dir)
    assert not (tmp_path / "x").exists() and not (run_dir / "x").exists()
    table = glmv(cluster, "status", job, str(run_dir), cwd=tmp_path).stdout
    assert table.count("DONE") == 2 and "10/10" in table
    assert "step 10/10" in glmv(cluster, "logs", job, "--rank", "0", cwd=tmp_path).stdout


def test_a_notice_saves_requeues_and_resumes(
    cluster: Cluster, shards: Path, tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """USR1 to every process of the step, as `--signal=USR1@N` sends it; torchrun's agent must not die of it."""
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *TWO, *PLAIN, "cluster.launcher=torchrun", "checkpoint.every=0")
    wait_for_step(cluster, run_dir, 2)
    cluster.run("scancel", "--signal=USR1", job)
    completed(cluster, job, run_dir, restarts=1)
    first, second = lines(run_dir / "attempts.jsonl")
    assert first["exit_code"] == 75 and "signal" in first["reason"]
    assert second["step_in"] == first["step_out"] >= 2  # nothing was lost
    assert near(metrics(run_dir), reference)


def test_the_time_limit_gives_notice_and_the_run_goes_on(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """A minute of notice before a limit of two; steps until then only."""
    run_dir = tmp_path / "run"
    limits = ("cluster.time=00:02:00", "cluster.notice=60", "cluster.preflight=false", "checkpoint.every=0")
    job = submit(cluster, shards, run_dir, *TWO, *limits, "train.steps=100000", "train.log_every=1000")
    cluster.wait("a second attempt", (run_dir / "logs" / f"{job}.1").is_dir, timeout=240)
    first = lines(run_dir / "attempts.jsonl")[0]
    assert first["exit_code"] == 75, log(run_dir)
    wait_for_step(cluster, run_dir, first["step_out"] + 1)
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    steps = [record["step"] for record in metrics(run_dir)]
    assert steps == list(range(1, len(steps) + 1))


def test_requeued_by_hand_it_continues(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *TWO, *PLAIN)
    wait_for_step(cluster, run_dir, 6)
    cluster.run("scontrol", "requeue", job)
    completed(cluster, job, run_dir, restarts=1)
    assert lines(run_dir / "attempts.jsonl")[-1]["step_in"] >= 5


def test_a_lost_node_is_replaced_and_nothing_after_the_checkpoint_is_kept(
    cluster: Cluster, shards: Path, tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *FOUR, *PLAIN)
    wait_for_step(cluster, run_dir, 6)
    before = {rank["host"] for rank in json.loads((run_dir / "ranks.json").read_text()).values()}
    lost = sorted(before)[-1]
    assert cluster.kill_node(lost) >= 3  # its daemon, a step, a rank
    try:
        completed(cluster, job, run_dir, restarts=1)
        after = {rank["host"] for rank in json.loads((run_dir / "ranks.json").read_text()).values()}
        assert lost not in after and len(after) == 2
        assert lines(run_dir / "attempts.jsonl")[-1]["step_in"] >= 5
        assert near(metrics(run_dir), reference)
    finally:
        cluster.revive_node(lost)


def test_a_rank_that_hangs_ends_the_attempt_and_the_job_runs_again(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *TWO, *PLAIN, "watchdog_s=6")
    wait_for_step(cluster, run_dir, 6)
    stopped = json.loads((run_dir / "ranks.json").read_text())["1"]["pid"]
    os.kill(stopped, signal.SIGSTOP)
    completed(cluster, job, run_dir, restarts=1)
    code = (run_dir / "logs" / f"{job}.0" / "exit_code").read_text()
    assert code.startswith("70 rank 0 made no progress")
    assert "micro-batch" in log(run_dir)
    assert alive([stopped]) == []


def test_what_running_again_does_not_mend_is_not_run_again(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    missing = submit(cluster, tmp_path / "nothing", tmp_path / "data", *TWO, *PLAIN)
    looked = submit(cluster, tmp_path / "nothing", tmp_path / "looked", *TWO)
    fields = cluster.wait_for_state(missing, "FAILED")
    assert fields["ExitCode"] == "65:0" and fields["Restarts"] == "0"
    assert "not run again" in log(tmp_path / "data")
    assert cluster.wait_for_state(looked, "FAILED")["ExitCode"] == "64:0"
    assert "no indexed shards" in log(tmp_path / "looked")
    waiting = submit(cluster, shards, tmp_path / "after", *TWO, *PLAIN, "--after", missing)
    assert cluster.wait_for_state(waiting, "CANCELLED")["Reason"] in ("DependencyNeverSatisfied", "Dependency")


def test_hangs_without_end_are_given_up(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """A limit so short that nothing can be done within it: every attempt is a hang."""
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *TWO, *PLAIN, "watchdog_s=0.05", "cluster.max_failures=1")
    fields = cluster.wait_for_state(job, "FAILED", timeout=240)
    assert fields["ExitCode"] == "70:0" and fields["Restarts"] == "1"
    assert "gives up" in log(run_dir)


def test_what_was_submitted_runs_whatever_becomes_of_the_checkout(
    cluster: Cluster, shards: Path, tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("megatron_glmv", "conf", "slurm"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *TWO, *PLAIN, "--hold", path=checkout)
    for file in ("megatron_glmv/train/step.py", "megatron_glmv/stages/run.py", "conf/config.yaml", "slurm/job.sbatch"):
        (checkout / file).write_text("raise SystemExit('the edited checkout was used')\n")
    assert cluster.job(job)["JobState"] == "PENDING"
    cluster.run("scontrol", "release", job)
    completed(cluster, job, run_dir, restarts=0)
    assert near(metrics(run_dir), reference)


def test_an_attempt_that_was_taken_for_dead_writes_nothing_more(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """Its node loses its daemon and the job starts elsewhere, while the old ranks live on."""
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *TWO, *PLAIN, "train.steps=100000", "train.log_every=1000")
    wait_for_step(cluster, run_dir, 6)
    old = json.loads((run_dir / "ranks.json").read_text())
    host, pids = old["0"]["host"], [rank["pid"] for rank in old.values()]
    cluster.hang_node(host)
    try:
        cluster.wait("a second attempt", lambda: json.loads((run_dir / "owner.json").read_text())["token"] == 2)
        cluster.wait("the end of the old ranks", lambda: not alive(pids), timeout=60)
        assert (
            "this attempt stops and writes nothing more" in (run_dir / "logs" / f"{job}.0" / "rank_0.log").read_text()
        )
        wait_for_step(cluster, run_dir, len(metrics(run_dir)) + 3)
        steps = [record["step"] for record in metrics(run_dir)]
        assert steps == list(range(1, len(steps) + 1))
        cluster.run("scancel", job)
        cluster.wait_for_state(job, "CANCELLED")
    finally:
        cluster.revive_node(host)


def test_a_sweep_goes_on_without_its_failed_members_and_tries_exactly_those_again(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """Member 1 has no data; member 3 is killed while it runs, and may not fail."""
    swept, bad = tmp_path / "swept", tmp_path / "later"
    paths = [shards, bad, tmp_path / "second", tmp_path / "third"]
    for path in paths[2:]:
        path.symlink_to(shards)
    base = [option for option in SMALL if not option.startswith("data.path")]
    done = glmv(
        cluster, "submit", "-m", *base, f"data.tokenizer={shards.parent / 'tokenizer'}", f"run_dir={swept}", *PLAIN,
        f"data.path={','.join(map(str, paths))}", "cluster.ranks_per_node=1", "cluster.max_failures=0",
        "train.steps=60", "train.log_every=50", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[1].rstrip(":")
    wait_for_step(cluster, swept / "3", 5)
    os.kill(json.loads((swept / "3" / "ranks.json").read_text())["0"]["pid"], signal.SIGKILL)
    cluster.wait("all ended", lambda: job not in cluster.run("squeue", "-h", "-o", "%F"), timeout=240)
    states = glmv(cluster, "sweep", "status", str(swept), cwd=tmp_path).stdout
    assert states.count("DONE") == 2 and states.count("FAILED") == 2, states
    results = glmv(cluster, "sweep", "results", str(swept), cwd=tmp_path)
    assert results.returncode == 0, results.stderr
    with (swept / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["member"], row["state"], row["step"]) for row in rows][:3] == [
        ("0", "DONE", "60"), ("1", "FAILED", "0"), ("2", "DONE", "60"),
    ]  # fmt: skip
    assert rows[3]["state"] == "FAILED" and float(rows[0]["best_loss"]) <= float(rows[0]["loss"])
    shutil.copytree(shards, bad)
    again = glmv(cluster, "sweep", "retry-failed", str(swept), cwd=tmp_path)
    assert "members 1, 3" in again.stdout, again.stdout + again.stderr
    second = again.stdout.split()[1].rstrip(":")
    cluster.wait("all ended", lambda: second not in cluster.run("squeue", "-h", "-o", "%F"), timeout=240)
    assert glmv(cluster, "sweep", "status", str(swept), cwd=tmp_path).stdout.count("DONE") == 4


def test_a_member_is_requeued_by_itself(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """The last one, whose number in Slurm is the array's own: what is done to that number is done to all members."""
    swept = tmp_path / "swept"
    done = glmv(
        cluster, "submit", "-m", *SMALL, f"data.path={shards}", f"run_dir={swept}", *PLAIN, "train.seed=1,2",
        "cluster.ranks_per_node=1", "train.steps=60", "train.log_every=50", "checkpoint.every=0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[1].rstrip(":")
    wait_for_step(cluster, swept / "1", 3)
    assert cluster.job(f"{job}_1")["JobId"] == job
    cluster.run("scancel", "--signal=USR1", f"{job}_1")
    cluster.wait("all ended", lambda: job not in cluster.run("squeue", "-h", "-o", "%F"), timeout=240)
    assert [cluster.job(f"{job}_{member}")["Restarts"] for member in "01"] == ["0", "1"], log(swept / "1")
    first, second = lines(swept / "1" / "attempts.jsonl")
    assert first["exit_code"] == 75 and second["exit_code"] == 0 and second["step_in"] == first["step_out"]
    assert [record["step"] for record in metrics(swept / "1")] == list(range(1, 61))
    assert len(lines(swept / "0" / "attempts.jsonl")) == 1


def test_a_cancelled_run_ends_clean_and_can_be_submitted_again(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """Slurm sends TERM and, five seconds later, KILL: whether the ranks saved in between or not, no process is left,
    the newest checkpoint is whole, and nothing starts by itself."""
    run_dir = tmp_path / "run"
    job = submit(cluster, shards, run_dir, *FOUR, *PLAIN, "train.steps=1000", "train.log_every=1000")
    wait_for_step(cluster, run_dir, 6)
    pids = [rank["pid"] for rank in ranks_of(run_dir).values()]
    assert len(alive(pids)) == 4
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    cluster.wait("the end of its processes", lambda: not cluster.processes_of(job), timeout=30)
    assert alive(pids) == []
    assert "CANCELLED" in glmv(cluster, "status", str(run_dir), cwd=tmp_path).stdout
    saved = open_checkpoint(run_dir, verify=True).manifest.step
    assert saved >= 5
    (left,) = (run_dir / "logs").glob("*/exit_code")
    if left.read_text().startswith("75"):  # they had the time
        assert lines(run_dir / "attempts.jsonl")[-1]["step_out"] == saved
    time.sleep(8)  # a requeued job would start after five
    fields = cluster.job(job)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    assert sorted(path.name for path in (run_dir / "logs").glob("*.*/")) == [f"{job}.0"]

    steps = f"train.steps={saved + 3}"
    again = submit(cluster, shards, run_dir, *FOUR, *PLAIN, steps, "resume=anyway")  # another number of steps
    assert cluster.wait_for_state(again, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log(run_dir)
    assert lines(run_dir / "attempts.jsonl")[-1]["step_in"] == saved
    assert [record["step"] for record in metrics(run_dir)] == list(range(1, saved + 4))
    assert "DONE" in glmv(cluster, "status", str(run_dir), cwd=tmp_path).stdout


def test_a_pipeline_is_a_chain_of_jobs_from_import_to_export(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """Every stage that there is, four steps each, between conversions from and to transformers' format."""
    hf, chain, out = tmp_path / "hf", tmp_path / "chain", tmp_path / "out"
    loadable = "model.vision.ffn=128"  # as wide as the decoder: transformers knows no other
    run(shards, tmp_path / "start", loadable, "train.steps=1")
    export_hf(ExportOptions(tmp_path / "start", hf, None))
    questions = [
        {"id": f"p{n}", "task": "sum", "domain": "text", "verifier": "exact", "answer": str(n % 3),
         "messages": [{"role": "user", "content": f"How many are there? {n}"}]}
        for n in range(6)
    ]  # fmt: skip
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in questions))
    small = [option for option in SMALL if not option.startswith(("experiment=", "train.steps="))]
    few = ("rl.groups=4", "rl.group_size=2", "rl.max_new_tokens=2", "rl.curriculum.grade=0", "rl.heldout_each=2")
    arguments = [
        "submit", "pipeline=tiny_full", *small, loadable, f"data.path={shards}", f"run_dir={chain}", *PLAIN,
        "train.steps=4", "checkpoint.every=2", "cluster.ranks_per_node=2", f"import:hf={hf}", f"export:out={out}",
        *(f"rlcs:{option}" for option in (*few, f"rl.prompts={prompts}", "rl.heldout=prompts.jsonl")),
    ]  # fmt: skip
    refused = glmv(cluster, *arguments, "rlcs:rl.heldout=nowhere.jsonl", cwd=tmp_path)
    assert refused.returncode == 64 and "rlcs:rl.heldout" in refused.stderr and not chain.exists()
    done = glmv(cluster, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    jobs = [words[1].rstrip(":") for words in told]
    steps = ["import", "pretrain", "longcontext", "sft", "rlcs", "export"]
    assert [Path(words[-1]).name for words in told] == steps
    table = glmv(cluster, "status", *(str(chain / step) for step in steps), cwd=tmp_path).stdout
    assert table.count("Dependency") >= 4, table
    for step, job in zip(steps, jobs, strict=True):
        fields = cluster.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", timeout=240)
        assert fields["JobState"] == "COMPLETED", log(chain / step)
    times = [cluster.job(job) for job in jobs]
    assert all(a["EndTime"] <= b["StartTime"] for a, b in itertools.pairwise(times))
    assert [len(ranks_of(chain / step)) for step in steps[1:5]] == [1, 2, 1, 1]  # layouts of their own
    assert [metrics(chain / step)[-1]["step"] for step in steps[1:5]] == [4] * 4
    table = glmv(cluster, "status", *(str(chain / step) for step in steps), cwd=tmp_path).stdout
    assert table.count("DONE") == 6, table
    # What came in is what was exported, what went out is what the last stage left, and they are not the same.
    equal = [verify_checkpoints(*pair).exit_code for pair in ((hf, chain / "import" / "model"), (chain / "rlcs", out))]
    assert equal == [0, 0] and verify_checkpoints(hf, out).exit_code == 77


def test_plain_train_with_the_launcher_waits_for_its_array_and_hands_the_objectives_back(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    swept = tmp_path / "swept"
    waits = ("hydra/launcher=glmv_slurm", "hydra.launcher.wait=true", "hydra.launcher.poll_s=0.5")
    done = glmv(
        cluster, "train", "-m", *SMALL, f"data.path={shards}", f"run_dir={swept}", *PLAIN, "train.seed=1,2",
        "cluster.ranks_per_node=1", *waits, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 members of tiny_pretrain" in done.stdout
    assert all(len(metrics(swept / member)) == 10 for member in "01")
    assert {rank["host"] for member in "01" for rank in ranks_of(swept / member).values()} <= set(cluster.nodes)


def test_doctor_looks_at_nodes(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    done = glmv(cluster, "doctor", "--cluster", "local", "--nodes", "2", f"data.path={shards}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sum over 2 nodes" in done.stdout and "2 nodes are fit" in done.stdout
    wrong = glmv(cluster, "doctor", "--cluster", "local", "cluster.gpus_per_node=8", cwd=tmp_path)
    assert wrong.returncode == 70 and "srun: error" in wrong.stderr, wrong.stdout + wrong.stderr  # it has none
