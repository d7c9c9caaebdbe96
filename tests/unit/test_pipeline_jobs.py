"""Pipelines as jobs: what runs, from what it starts, and what is refused before any job is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from megatron_glmv.cli.convert import app as convert_app
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import choices
from megatron_glmv.launch.conversion import OPTIONS, Conversion
from megatron_glmv.launch.job import sbatch_options
from megatron_glmv.launch.pipeline import prepare_pipeline
from megatron_glmv.launch.submit import Options, Prepared


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.jsonl").write_text("")
    prompts = [f"rlcs:rl.prompts={tmp_path / 'prompts.jsonl'}", "rlcs:rl.heldout="]
    return [f"run_dir={tmp_path / 'chain'}", "data.path=d", *prompts]


def test_every_stage_starts_from_the_one_before(given: list[str], tmp_path: Path) -> None:
    jobs = prepare_pipeline(
        "glm41v_full", [*given, "sft:optim.lr=3e-5", "sft:data.path=s", "cluster=h100"], Options(hold=True)
    )
    configs = [job.config for job in jobs if isinstance(job, Prepared)]
    stages = ["pretrain", "longcontext", "sft", "rlcs"]
    assert [config.stage.name for config in configs] == stages and len(jobs) == 4
    chain = tmp_path / "chain"
    assert [config.init_from for config in configs] == [None, *(str(chain / stage) for stage in stages[:3])]
    assert [config.optim.lr for config in configs] == [1e-4, 1e-5, 3e-5, 1e-6]
    assert [Path(config.data.path).name for config in configs] == ["d", "d", "s", "d"]
    assert [job.job.hold for job in jobs] == [True, False, False, False]
    assert not chain.exists()


@pytest.mark.parametrize("name", choices("pipeline"))
def test_every_shipped_pipeline_is_a_chain_of_legal_stages(name: str, given: list[str]) -> None:
    cluster = ["cluster=local"] if name.startswith("tiny") else ["cluster=h100", "cluster.nodes=16"]
    jobs = prepare_pipeline(name, [*given, *cluster], Options())
    stages = [job.config.stage.name for job in jobs if isinstance(job, Prepared)]
    assert stages == ["pretrain", "longcontext", "sft", "rlcs"] and len(jobs) == 4


def test_an_unknown_pipeline_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"there are: .*tiny_full"):
        prepare_pipeline("none", [], Options())


def test_conversions_run_on_the_cpus_of_a_node_where_they_are_asked_for(given: list[str], tmp_path: Path) -> None:
    own = [f"import:hf={tmp_path}", "import:cluster.partition=cpu", "import:memory_limit=2GiB", "export:verify=true"]
    jobs = prepare_pipeline("glm45v_full", [*given, "cluster=h100", *own], Options())
    first, last = jobs[0], jobs[-1]
    assert len(jobs) == 6 and isinstance(first, Conversion) and isinstance(last, Conversion)
    model, hf, before = (tmp_path / "chain" / step for step in ("import/model", "export/hf", "rlcs"))
    expected = ["import", "--out", model, "--hf", tmp_path, "--memory-limit", "2GiB", "--workers", 12]
    assert list(first.arguments) == list(map(str, expected))
    expected = ["export", "--out", hf, "--verify", "--workers", 12, "--ckpt", before]
    assert list(last.arguments) == list(map(str, expected))
    assert isinstance(jobs[1], Prepared) and jobs[1].config.init_from == str(model)
    asked = sbatch_options(first.job)
    assert {"--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=12", "--partition=cpu"} <= {*asked}
    assert not any("gpu" in option or "exclusive" in option for option in asked)
    assert any("gpu" in option for option in sbatch_options(jobs[1].job))


def test_options_of_conversions_are_those_of_glmv_convert() -> None:
    commands = typer.main.get_command(convert_app).commands  # type: ignore[attr-defined]
    for command, options in OPTIONS.items():
        theirs = {parameter.name.rstrip("_") for parameter in commands[command].params} - {"ckpt", "help"}
        assert {*options} == theirs


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("rlcs:rl.prompts=nowhere.jsonl", "rlcs:rl.prompts"),
        ("rlcs:rl.heldout=nowhere.jsonl", "rlcs:rl.heldout"),
        ("sft:optim.beta1=2", "sft:optim.beta1"),
        ("import:hf=/nowhere", "import:hf"),
        ("import:workers=many", "import:workers"),
        ("export:verify=perhaps", "export:verify"),
        ("export:hf=.", "export:hf"),
        ("export:enabled=later", "export:enabled"),
    ],
)
def test_what_is_wrong_with_a_step_is_said_with_its_name(given: list[str], override: str, option: str) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare_pipeline("glm45v_full", [*given, override], Options())
    assert refused.value.option == option


def test_rlcs_has_to_be_given_prompts() -> None:
    with pytest.raises(ConfigError, match=r"rlcs:rl\.prompts=: has to be given"):
        prepare_pipeline("glm45v_full", ["data.path=d"], Options())
