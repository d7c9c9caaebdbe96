"""What becomes of a job before Slurm sees it: its argument list, what is refused, what is frozen. No Slurm needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_glmv.config.cluster import ClusterConfig
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import choices, compose, from_dict
from megatron_glmv.launch import freeze, preflight
from megatron_glmv.launch.fields import check
from megatron_glmv.launch.job import Job, Shape, sbatch_argv, sbatch_options, script_arguments, shape_of
from megatron_glmv.launch.retry import submissions_of
from megatron_glmv.launch.submit import Options, expand, prepare, prepare_members, prepare_sweep

GLMV = str(Path(sys.executable).with_name("glmv"))
TINY = ["experiment=tiny_pretrain", "data.path=shards"]


def job(tmp_path: Path, cluster: ClusterConfig | None = None, **fields: Any) -> Job:
    given = {"name": "tiny", "shape": Shape(2, 2), "run_dir": tmp_path, "submission": tmp_path / "submissions" / "001"}
    return Job(**{**given, "cluster": cluster or ClusterConfig(), "python": "/usr/bin/python3", **fields})


def test_a_call_of_sbatch_word_for_word(tmp_path: Path) -> None:
    cluster = ClusterConfig(
        account="lab", partition="a,b", gpus_per_node=8, cpus_per_rank=4, memory="0", exclusive=True, time="1-00:00:00"
    )
    argv = sbatch_argv(job(tmp_path, cluster, after=("17",), hold=True))
    assert argv[:2] == ["sbatch", "--parsable"]
    options = argv[2 : argv.index(f"{tmp_path}/submissions/001/job.sbatch")]
    assert set(options) == {
        "--job-name=tiny", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=4", "--time=1-00:00:00",
        "--signal=USR1@300", "--requeue", "--open-mode=append", "--kill-on-invalid-dep=yes", "--export=NONE",
        f"--output={tmp_path}/logs/slurm-%j.log", "--gpus-per-node=2", "--exclusive", "--mem=0", "--account=lab",
        "--partition=a,b", "--dependency=afterok:17", "--hold",
    }  # fmt: skip


def test_nothing_is_asked_of_an_unknown_cluster(tmp_path: Path) -> None:
    options = sbatch_options(job(tmp_path))
    assert not [o for o in options if o.startswith(("--partition", "--account", "--gpus", "--mem", "--qos"))]


def test_torchrun_is_one_task_a_node_with_the_cores_of_all(tmp_path: Path) -> None:
    options = sbatch_options(job(tmp_path, ClusterConfig(launcher="torchrun", cpus_per_rank=6)))
    assert "--ntasks-per-node=1" in options and "--cpus-per-task=12" in options


def test_containers_bindings_and_environment_reach_srun(tmp_path: Path) -> None:
    pyxis = ClusterConfig(
        container="pyxis", container_image="/images/a.sqsh", container_mounts=("/data:/data:ro",),
        bind=("--cpu-bind=none",), environment=("NCCL_DEBUG=WARN",), ranks_per_node=2, numa_of_rank=(0, 1),
    )  # fmt: skip
    arguments = script_arguments(job(tmp_path, pyxis))
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    assert ("--srun", "--container-image=/images/a.sqsh") in pairs and ("--srun", "--cpu-bind=none") in pairs
    assert ("--srun", f"--container-mounts={tmp_path}:{tmp_path},/data:/data:ro") in pairs
    assert ("--env", "NCCL_DEBUG=WARN") in pairs and ("--env", "GLMV_NUMA_OF_RANK=0 1") in pairs
    apptainer = replace(pyxis, container="apptainer", container_image="/images/a.sif", gpus_per_node=2)
    wrapped = [v for n, v in _pairs(job(tmp_path, apptainer)) if n == "--wrap"]
    assert wrapped[:3] == ["apptainer", "exec", "--nv"] and wrapped[-1] == "/images/a.sif"


def _pairs(one: Job) -> list[tuple[str, str]]:
    arguments = script_arguments(one)
    return list(zip(arguments[::2], arguments[1::2], strict=True))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account", "a b"), ("account", "-a"), ("partition", "a;rm -rf /"), ("qos", "$(id)"), ("exclude", "n1\nn2"),
        ("memory", "lots"), ("time", "1 hour"), ("container_image", "; true"), ("environment", ("A=b\nC=d",)),
        ("environment", ("1A=b",)), ("bind", ("--wrap=x",)), ("extra", ("--output=/etc/passwd",)), ("extra", ("x",)),
        ("modules", ("cuda; id",)), ("container_mounts", ("/a:/b:rw,/c",)), ("notice", 30),
    ],
)  # fmt: skip
def test_hostile_fields_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field.partition("[")[0]):
        check(replace(ClusterConfig(), **{field: value}))


@pytest.mark.parametrize("path", ["/a%b", "/a\nb", "relative", "/a\\b"])
def test_paths_that_slurm_reads_another_way_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run_dir"):
        job(tmp_path, run_dir=Path(path))


def test_a_path_with_quotes_and_spaces_is_one_argument(tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s $(a) "run"; dir'
    argv = sbatch_argv(job(tmp_path, run_dir=odd))
    assert f"--output={odd}/logs/slurm-%j.log" in argv and str(odd) in argv


@pytest.mark.parametrize("cluster", choices("cluster"))
def test_every_shipped_cluster_makes_a_legal_job(cluster: str, tmp_path: Path) -> None:
    config = compose([*TINY, f"cluster={cluster}"])
    check(config.cluster)
    assert "--requeue" in sbatch_options(job(tmp_path, config.cluster, shape=shape_of(config)))


def test_shapes() -> None:
    big = ["experiment=glm45v_pretrain", "data.path=x"]
    assert shape_of(compose([*big, "cluster=h100"])) == Shape(4, 8)
    assert shape_of(compose([*big, "cluster=h100", "cluster.nodes=16"])) == Shape(16, 8)
    assert shape_of(compose([*TINY, "parallel=tp2_pp2_ep2", "cluster.nodes=2"])) == Shape(2, 8)
    assert shape_of(compose([*TINY, "parallel=tp2_pp2_ep2"])) == Shape(1, 4)
    assert shape_of(compose([*TINY, "parallel.tensor=2", "parallel.data=2", "cluster.nodes=2"])) == Shape(2, 2)
    with pytest.raises(ConfigError, match=r"cluster\.nodes"):
        shape_of(compose([*TINY, "parallel.data=3", "cluster.nodes=2"]))


def test_a_submission_holds_config_code_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = prepare([*TINY, "run_dir=run", "optim.lr=1e-4"], Options())
    assert not (tmp_path / "run").exists()  # nothing is written before it is sent
    prepared.freeze()
    frozen = tmp_path / "run" / "submissions" / "001"
    config = from_dict(yaml.safe_load((frozen / "config.yaml").read_text()))
    assert config.optim.lr == 1e-4 and config.data.path == str(tmp_path / "shards")
    assert config.run_dir == str(tmp_path / "run")
    about = json.loads((frozen / "submission.json").read_text())
    assert about["code_sha256"] == freeze.digest(frozen / "code")
    assert (frozen / "code" / "megatron_glmv" / "stages" / "run.py").is_file()
    assert {"job.sbatch", "rank.sh", "preflight.py"} <= {path.name for path in frozen.iterdir()}
    assert "torch==" in (frozen / "requirements.lock").read_text()
    assert freeze.next_submission(tmp_path / "run").name == "002"


def test_a_sweep_is_one_array_of_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand(["a=1,2", "b=x", "c=range(0,2)"]) == [
        ["a=1", "b=x", "c=0"], ["a=1", "b=x", "c=1"], ["a=2", "b=x", "c=0"], ["a=2", "b=x", "c=1"],
    ]  # fmt: skip
    prepared = prepare_sweep([*TINY, "optim.lr=1e-4,2e-4", "train.seed=1,2", "run_dir=swept"], Options())
    assert "--array=0,1,2,3%8" in sbatch_options(prepared.job)
    prepared.freeze()
    members = sorted((tmp_path / "swept" / "submissions" / "001" / "members").iterdir())
    configs = [from_dict(yaml.safe_load(path.read_text())) for path in members]
    assert [(c.optim.lr, c.train.seed) for c in configs] == [(1e-4, 1), (1e-4, 2), (2e-4, 1), (2e-4, 2)]
    assert [c.run_dir for c in configs] == [str(tmp_path / "swept" / str(i)) for i in range(4)]
    told = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    assert told["2"] == ["optim.lr=0.0002", "train.seed=1"]
    with pytest.raises(ConfigError, match=r"parallel\.tensor"):
        prepare_sweep([*TINY, "parallel.tensor=1,3"], Options())


def test_members_are_tried_again_from_the_submission_that_froze_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper that asks for two members and then for one more."""
    monkeypatch.chdir(tmp_path)
    one = [*TINY, "run_dir=swept"]
    for first, rates in ((0, ("1e-4", "2e-4")), (2, ("3e-4",))):
        prepare_members([[*one, f"optim.lr={rate}"] for rate in rates], Options(), first).freeze()
    swept = tmp_path / "swept"
    assert list(json.loads((swept / "sweep.json").read_text())) == ["0", "1", "2"]
    found = submissions_of(swept, (1, 2))
    assert {path.name: part for path, part in found.items()} == {"001": (1,), "002": (2,)}
    with pytest.raises(ConfigError, match="submitted sweep"):
        submissions_of(swept, (3,))


def test_submit_says_what_it_would_do_and_refuses_what_cannot_run(tmp_path: Path) -> None:
    def glmv(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([GLMV, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    dry = glmv("submit", *TINY, "--dry-run")
    assert dry.returncode == 0 and dry.stdout.startswith("sbatch --parsable --job-name=tiny_pretrain")
    assert "#!/usr/bin/env bash" in dry.stdout and list(tmp_path.iterdir()) == []
    for wrong, word in (("parallel.tensor=3", "parallel.tensor"), ("cluster.account=a b", "cluster.account")):
        refused = glmv("submit", *TINY, wrong, "--dry-run")
        assert refused.returncode == 64 and word in refused.stderr and "Traceback" not in refused.stderr


def test_shell_scripts_parse() -> None:
    for script in freeze.scripts_dir().glob("*.s*"):
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_preflight_judges_devices_time_and_shards(tmp_path: Path) -> None:
    assert preflight.judge_devices("0, 0\n1, [N/A]\n", 2) == "2 GPUs"
    with pytest.raises(preflight.Unfit, match="1 GPUs, 2"):
        preflight.judge_devices("0, 0\n", 2)
    with pytest.raises(preflight.Unfit, match="memory errors on GPU 1"):
        preflight.judge_devices("0, 0\n1, 3\n", 2)
    assert preflight.seconds_of("1-02:03:04") == 93784 and preflight.seconds_of("00:10:00") == 600
    config = compose([*TINY, "cluster.time=00:05:00", "cluster.notice=300"])
    with pytest.raises(preflight.Impossible, match=r"cluster\.time"):
        preflight.limit(config)
    with pytest.raises(preflight.Impossible, match="no indexed shards"):
        preflight.shards(compose(["experiment=tiny_pretrain", f"data.path={tmp_path}"]))
    prompts = compose(["experiment=tiny_rlcs", f"rl.prompts={tmp_path}/none", "rl.heldout="])
    with pytest.raises(preflight.Impossible, match="none: No such file"):
        preflight.prompts(prompts)


def test_nodes_that_do_not_come_are_named(tmp_path: Path) -> None:
    place = preflight.Place("a", 0, ("a", "b"), tmp_path)
    with pytest.raises(preflight.Impossible, match="b left no sign"):
        preflight.meet(place, wait=0.5)
    assert (tmp_path / "bad_node.b").read_text() == "b\n" and not (tmp_path / "bad_node.a").exists()
    (tmp_path / "preflight" / "b").write_text(f"{time.time()}")
    assert preflight.meet(place, wait=0.5).startswith("2 nodes, clocks within 0.")


def test_only_the_node_with_the_wrong_clock_is_unfit() -> None:
    skews = {"a": 0.1, "b": -9.0, "c": 0.0}
    assert preflight.judge_clocks(skews, "a") == "3 nodes, clocks within 9.1 s"
    with pytest.raises(preflight.Unfit, match=r"-9\.0 s off"):
        preflight.judge_clocks(skews, "b")
