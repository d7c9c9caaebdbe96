"""Layers of pipeline chunks by cost: small cases by hand, all splits tried, the released model's numbers."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import compose
from megatron_glmv.config.pipeline_split import chunk_layers, layer_cost, part_costs, split, visual_token_cost
from megatron_glmv.config.validate import validate

GLM45V = "experiment=glm45v_pretrain"


def test_equal_layers_alone_are_split_evenly() -> None:
    assert split(0, [1] * 8, 0, 4) == (2, 2, 2, 2)
    assert split(0, [1] * 8, 0, 1) == (8,)
    assert split(0, [1] * 3, 0, 3) == (1, 1, 1)


def test_what_stands_before_and_behind_counts() -> None:
    assert split(2, [1] * 8, 0, 2) == (3, 5)  # 2 + 3 against 5
    assert split(2, [1] * 9, 1, 4) == (1, 3, 3, 2)  # 3, 3, 3, 3
    assert split(5, [1] * 7, 3, 3) == (1, 4, 2)  # 6, 4, 5: the encoder alone is more than a third
    assert split(100, [1] * 6, 0, 3) == (1, 2, 3) or split(100, [1] * 6, 0, 3) == (1, 3, 2)


@pytest.mark.parametrize("before, behind", [(0.0, 0.0), (3.5, 0.5), (0.0, 9.0), (7.0, 2.0)])
def test_no_split_has_a_cheaper_dearest_chunk(before: float, behind: float) -> None:
    layers = [1.0, 2.0, 2.0, 5.0, 1.0, 1.0, 3.0, 2.0]
    for chunks in range(1, len(layers) + 1):
        found = split(before, layers, behind, chunks)
        assert len(found) == chunks and sum(found) == len(layers) and min(found) >= 1

        def dearest(cuts: tuple[int, ...]) -> float:
            ends = (0, *cuts, len(layers))
            sums = [sum(layers[a:b]) for a, b in pairwise(ends)]
            sums[0] += before
            sums[-1] += behind
            return max(sums)

        best = min(dearest(cuts) for cuts in combinations(range(1, len(layers)), chunks - 1))
        cuts = tuple(sum(found[: i + 1]) for i in range(chunks - 1))
        assert dearest(cuts) == best


def test_more_chunks_than_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 layers cannot be cut into 4"):
        split(0, [1] * 3, 0, 4)


def test_costs_of_the_released_model_by_hand() -> None:
    """Attention 4096 x 128 x (2 x 96 + 2 x 8) = 109,051,904; sparse 4096 x (3 x 9 x 1408 + 128) = 156,237,824; a block
    of the encoder 4 x 1536^2 + 3 x 1536 x 4096 = 28,311,552 a patch."""
    config = compose([GLM45V, "data.path=x"])
    text, vision = config.model.text, config.model.vision
    assert layer_cost(text, 0) == 109_051_904 + 3 * 4096 * 10944
    assert layer_cost(text, 1) == 109_051_904 + 156_237_824
    patch = 1176 * 1536 + 24 * 28_311_552 + 1536 * 4096
    assert visual_token_cost(vision, 4096) == 4 * patch + 4096 * 4096 + 3 * 4096 * 10944
    before, layers, behind = part_costs(config)
    assert (before, len(layers), behind) == (0.5 * visual_token_cost(vision, 4096), 46, 4096 * 151_552)


def test_balanced_stages_of_the_released_model() -> None:
    config = compose([GLM45V, "data.path=x", "parallel.pipeline_layers=null", "parallel.pipeline_split=balanced"])
    validate(config, 32)
    layers = chunk_layers(config)
    assert layers is not None and sum(layers) == 46 and layers[0] < layers[1] and layers[3] < layers[2]
    replicated = compose(
        [GLM45V, "data.path=x", "parallel.pipeline_layers=null", "parallel.pipeline_split=balanced",
         "parallel.context=4", "parallel.encoder_data=false"]
    )  # fmt: skip
    fewer = chunk_layers(replicated)
    assert fewer is not None and fewer[0] < layers[0]  # four ranks encode everything each


def test_two_ways_to_say_it_are_refused() -> None:
    config = compose([GLM45V, "data.path=x", "parallel.pipeline_split=balanced"])
    with pytest.raises(ConfigError, match="pipeline_split=balanced both say"):
        validate(config, 32)
    with pytest.raises(ConfigError, match="pipeline_split"):
        validate(compose([GLM45V, "data.path=x", "parallel.pipeline_split=fair"]), 32)
