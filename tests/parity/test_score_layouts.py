"""`glmv score` under parallel layouts against transformers: the bounds of test_parity.py hold under each.

The case has three rows, padded on the left: images and a video, text alone, a video and images. On two data-parallel
ranks one of them gets a pack of padding. How work is spread is checked by the layouts of tests/dist; here each rank's
part has to come out at its place.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from parity.compare import score_and_compare
from parity.conftest import Reference

FAST = {
    ("glm45v", "tensor=2"): "2 ranks: tensor 2, expert_tensor 2",
    ("glm45v", "pipeline=2"): "2 ranks: pipeline 2",
    ("glm45v", "data=2 expert=2"): "2 ranks: expert 2, data 2",
    ("glm45v", "context=2"): "2 ranks: context 2",
    ("glm41v", "tensor=2"): "2 ranks: tensor 2, expert_tensor 2",
    ("glm41v", "pipeline=2 virtual_pipeline=2"): "2 ranks: pipeline 2, virtual_pipeline 2",
    ("glm41v", "data=2"): "2 ranks: data 2",
}
SLOW = {
    ("glm45v", "tensor=2 pipeline=2 expert=2"): "4 ranks: tensor 2, pipeline 2, expert 2",
    ("glm45v", "tensor=2 expert=2 encoder_data=false"): "2 ranks: tensor 2, expert 2",
    ("glm45v", "data=2 expert=4 tensor=2"): "4 ranks: tensor 2, expert 4, data 2",
    ("glm45v", "context=2 expert=2"): "2 ranks: context 2, expert 2",
    ("glm45v", "tensor=2 context=2 expert=4"): "4 ranks: tensor 2, context 2, expert 4",
    ("glm41v", "tensor=2 context=2 encoder_data=false"): "4 ranks: tensor 2, context 2, expert_tensor 2",
    ("glm41v", "context=4"): "4 ranks: context 4",
    ("glm41v", "context=2 pipeline=2"): "4 ranks: pipeline 2, context 2",
    ("glm45v", "pipeline=2 pipeline_layers=[1,3]"): "2 ranks: pipeline 2",
    ("glm41v", "tensor=2 sequence=false"): "2 ranks: tensor 2, expert_tensor 2",
    ("glm41v", "tensor=2 data=2"): "4 ranks: tensor 2, expert_tensor 2, data 2",
}


def check(reference: Reference, model: str, options: str, layout: str, folder: Path, case: str = "mixture") -> None:
    overrides = [f"parallel.{option}" for option in options.split()]
    found = score_and_compare(reference, model, case, folder, overrides)
    assert found["layout"] == layout


@pytest.mark.parametrize(("model", "options"), FAST)
def test_a_layout_gives_the_numbers_of_transformers(
    reference: Reference, model: str, options: str, tmp_path: Path
) -> None:
    check(reference, model, options, FAST[model, options], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "options"), SLOW)
def test_products_of_layouts_give_the_numbers_of_transformers(
    reference: Reference, model: str, options: str, tmp_path: Path
) -> None:
    check(reference, model, options, SLOW[model, options], tmp_path)
    check(reference, model, options, SLOW[model, options], tmp_path, case="text")
