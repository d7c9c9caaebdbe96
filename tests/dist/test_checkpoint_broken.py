"""What cannot be loaded is refused on every rank alike, and what cannot be written leaves everything as it was."""

from __future__ import annotations

import dataclasses
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from dist.checkpoint_job import Job, Leg, Outcome, live
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.reader import open_checkpoint

CONFIG = tiny.config(data=2, expert=2)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2 of a dp2 ep2 run (keep=2), and what the run did until 3."""
    root = tmp_path_factory.mktemp("saved")
    run_ranks(live, 2, Leg(CONFIG, until=2, save=root, save_at=(1, 2)))
    return root


@pytest.fixture
def saved(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "checkpoints"))


def resume(root: Path, config: Any = CONFIG, **leg: Any) -> list[Outcome]:
    outcomes: list[Outcome] = run_ranks(live, 2, Leg(config, load=root, **leg))
    assert len({(o.error, o.exit_code, o.resumed_at) for o in outcomes}) == 1, "ranks came out differently"
    return outcomes


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def test_a_broken_newest_checkpoint_is_reported_once_and_the_one_before_taken(saved: Path) -> None:
    flip_bit(saved / "step_2" / "__1_0.distcp")
    outcomes = resume(saved, until=2)
    assert outcomes[0].resumed_at == 1 and [step for step, _, _ in outcomes[0].history] == [2]
    (warning,) = outcomes[0].warnings
    assert "step_2" in warning and "__1_0.distcp does not have the sha256" in warning and "step_1" in warning
    assert outcomes[1].warnings == []
    assert store.step_directories(saved) == [1] and len(list(saved.glob("step_2.broken-*"))) == 1


def test_when_none_is_sound_the_run_does_not_start_again(saved: Path) -> None:
    (saved / "step_2" / "manifest.json").unlink()
    (saved / "step_1" / "__0_0.distcp").write_bytes(b"")
    for _ in range(2):  # a second try finds the same
        outcomes = resume(saved, until=1)
        assert outcomes[0].exit_code == 77 and outcomes[0].history == []
        for part in ("step_2", "manifest.json is missing", "step_1", "__0_0.distcp has 0 bytes", str(saved)):
            assert part in outcomes[0].error
    assert store.step_directories(saved) == [1, 2], "nothing is renamed when nothing is loaded"


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    assert resume(tmp_path / "none")[0] == Outcome()


def test_another_model_or_tokenizer_is_refused_by_name_on_every_rank(saved: Path) -> None:
    errors = run_ranks(_refusals, 2, CONFIG, saved)
    assert errors[0] == errors[1]
    model, tokenizer, bigger = errors[0]
    assert "model.text.rope_theta is 10000.0 in the checkpoint, 5000.0 in this run" in model
    assert "tok in the checkpoint, other in this run" in tokenizer
    assert "word_embeddings.weight has shape (128, 64) in the checkpoint, (256, 64) here" in bigger
    assert store.step_directories(saved) == [1, 2], "a sound checkpoint of another model is not broken"


def _refusals(config: Any, root: Path) -> list[str]:
    from megatron_glmv.checkpoint.errors import MismatchError
    from megatron_glmv.checkpoint.reader import open_checkpoint
    from megatron_glmv.checkpoint.sharded import load_shards

    def error(action: Any) -> str:
        with pytest.raises(MismatchError) as caught:
            action()
        assert caught.value.exit_code == 64
        return str(caught.value)

    text = dataclasses.replace(config.model.text, vocab=256)
    job = Job(dataclasses.replace(config, model=dataclasses.replace(config.model, text=text)))
    chunks, optimizer = job.trainer.chunks, job.trainer.optimizer
    bigger = error(lambda: load_shards(open_checkpoint(root), chunks, optimizer, job.metadata))
    rope = dataclasses.replace(config.model.text, rope_theta=5000.0)
    job.config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=rope))
    model = error(lambda: job.resume(root))
    job.config = config
    tokenizer = error(lambda: job.manager(root, tokenizer="other").restore_latest(chunks, optimizer))
    return [model, tokenizer, bigger]


def test_a_checkpoint_with_tensors_that_nobody_asks_for_is_refused(saved: Path) -> None:
    """A model without the decoder's last layers would load the rest and lose them silently."""
    text = dataclasses.replace(CONFIG.model.text, layers=3)
    errors = run_ranks(
        _left_over, 2, dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, text=text)), saved
    )
    assert all("elements of weights, the model here has" in error for error in errors)


def _left_over(config: Any, root: Path) -> str:
    from megatron_glmv.checkpoint.errors import MismatchError
    from megatron_glmv.checkpoint.reader import open_checkpoint
    from megatron_glmv.checkpoint.sharded import load_shards

    job = Job(config)
    with pytest.raises(MismatchError) as caught:
        load_shards(open_checkpoint(root), job.trainer.chunks, None, job.metadata)
    return str(caught.value)


def test_weights_alone_are_taken_from_any_checkpoint_and_reach_the_optimizer(saved: Path) -> None:
    results = run_ranks(_start_from, 1, tiny.config(precision="bf16"), saved)
    equal, first, second = results[0]
    assert equal
    assert first != second, "the optimizer's fp32 copies are the loaded weights, or the step would undo the loading"


def _start_from(config: Any, root: Path) -> tuple[bool, float, float]:
    """Loads into bf16; whether weights are the checkpoint's, and the loss before and after loading."""
    from megatron_glmv.checkpoint.sharded import model_state
    from megatron_glmv.model.initialise import shards

    job = Job(config)
    fresh = job.train_step()[1]
    job.manager(root.parent).load_weights(root, job.trainer.chunks, job.trainer.optimizer)
    checkpoint = open_checkpoint(root)
    loaded = list(shards({"m": model_state(job.trainer.chunks[0], job.metadata)}))
    equal = all(
        shard.data.float()
        .flatten()
        .equal(checkpoint.read(shard.key, shard.global_offset, _shape(shard)).to(shard.dtype).float().flatten())
        for shard in loaded
    )
    for part in job.trainer.optimizer.chained_optimizers:
        for model_group, main_group in zip(part.model_float16_groups, part.shard_fp32_from_float16_groups, strict=True):
            for weight, main in zip(model_group, main_group, strict=True):
                equal &= main is None or weight.detach().float().flatten().equal(main.detach().flatten())
    return equal, fresh, job.train_step()[1]


def _shape(shard: Any) -> tuple[int, ...]:
    return (1,) * shard.prepend_axis_num + tuple(shard.local_shape)


def test_a_full_disk_fails_the_save_on_every_rank_and_the_next_save_succeeds(tmp_path: Path) -> None:
    outcomes = run_ranks(_full_disk, 2, CONFIG, tmp_path)
    for errors, left_after_failure, left in outcomes:
        assert len(errors) == 3
        assert all("step 2 could not be written" in error for error in errors)
        assert left_after_failure == [["step_1"]] * 3
        assert left == ["step_1", "step_2"]
    assert outcomes[0][0] == outcomes[1][0]
    assert open_checkpoint(tmp_path, verify=True).manifest.step == 2


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def _full_disk(config: Any, root: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """A limit on the size of files stands for the disk, at a small file, at the shards, and at rank 1 alone."""
    import signal

    import torch.distributed as dist

    from megatron_glmv.checkpoint.errors import SaveError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    job = Job(config)
    job.train_step()
    job.save(root)
    job.train_step()
    errors, left = [], []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, ranks in ((1000, (0, 1)), (200_000, (0, 1)), (200_000, (1,))):
        if dist.get_rank() in ranks:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(SaveError) as caught:
            job.save(root)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        errors.append(str(caught.value))
        dist.barrier()
        left.append(names(root))
        dist.barrier()
    job.save(root)
    return errors, left, names(root)
