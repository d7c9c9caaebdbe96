"""FP8 in real runs of `glmv train`: emulated by name and said so, resumed bitwise, refused where nobody named it."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.small_set import make
from faults.training import Training, metrics, run

pytestmark = pytest.mark.slow

SIZES = ("model.text.layers=3", "train.steps=4", "checkpoint.every=2", "platform=cpu")
EMULATED = (*SIZES, "precision=fp8", "precision.fp8_backend=emulate", "precision.fp8_recipe=blockwise")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("set")
    make(directory, images=12, clips=0, texts=24, sound=True)
    return directory / "shards"


def test_an_emulated_run_says_so_resumes_bitwise_and_differs_from_bf16(data: Path, tmp_path: Path) -> None:
    layout = ("parallel.tensor=2",)
    output = run(data, tmp_path / "whole", *EMULATED, *layout)
    assert "FP8 is EMULATED, recipe blockwise" in output and "not in FP8: routers" in output
    run(data, tmp_path / "halves", *EMULATED, *layout, "train.stop_step=2")
    assert [record["step"] for record in metrics(tmp_path / "halves")] == [1, 2]
    run(data, tmp_path / "halves", *EMULATED, *layout)
    whole = metrics(tmp_path / "whole")
    assert len(whole) == 4 and metrics(tmp_path / "halves") == whole
    bf16 = run(data, tmp_path / "bf16", *SIZES, "precision=bf16", *layout)
    assert "FP8" not in bf16
    for ours, theirs in zip(whole, metrics(tmp_path / "bf16"), strict=True):
        assert 0 < abs(ours["loss"] - theirs["loss"]) < 0.02 * theirs["loss"]


def test_fp8_that_nobody_named_as_emulated_is_refused(data: Path, tmp_path: Path) -> None:
    """Also where the platform is found out only in the ranks."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    options = [option for option in SIZES if not option.startswith("platform=")]
    code, output = Training(data, tmp_path / "run", *options, "precision=fp8").finish()
    assert code == 64, output
    assert "precision.fp8_backend=te: needs a CUDA GPU" in output and "precision.fp8_backend=emulate" in output
