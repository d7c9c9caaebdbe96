"""The parts of the model against their definitions: convolutions, positions, attention in packs, spreading, routing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron_glmv.config.schema import TextConfig, VisionConfig
from megatron_glmv.platform.device import select

select("cpu").install()

from megatron.core.transformer.enums import AttnMaskType  # noqa: E402

from megatron_glmv.model.attention import CoreAttention  # noqa: E402
from megatron_glmv.model.encoder_dp import assign, frame_cost  # noqa: E402
from megatron_glmv.model.fusion import fuse  # noqa: E402
from megatron_glmv.model.packed import context_split, packed_segments  # noqa: E402
from megatron_glmv.model.rope import TextRotary, VisionRotary  # noqa: E402
from megatron_glmv.model.vision import Downsample, PatchEmbedding, PositionEmbedding, patch_coordinates  # noqa: E402

VISION = VisionConfig(depth=1, hidden=8, heads=2, ffn=16, merger_ffn=16, patch=4, position_grid=6)


def fill(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)


def test_patch_embedding_is_the_convolution() -> None:
    layer = PatchEmbedding(VISION, torch.float32)
    fill(layer)
    patches = torch.randn(5, VISION.patch_values)
    whole = patches.view(5, 3, VISION.temporal_patch, VISION.patch, VISION.patch)
    expected = F.conv3d(whole, layer.weight, layer.bias, stride=whole.shape[2:]).flatten(1)
    assert torch.allclose(layer(patches), expected, atol=1e-5)


def test_downsample_is_the_convolution_over_blocks() -> None:
    layer = Downsample(VISION, 12, torch.float32)
    fill(layer)
    x = torch.randn(4 * 7, VISION.hidden)
    blocks = x.view(7, 2, 2, VISION.hidden).permute(0, 3, 1, 2)
    expected = F.conv2d(blocks, layer.weight, layer.bias, stride=2)[:, :, 0, 0]
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_patches_of_a_block_are_neighbours() -> None:
    rows, columns = patch_coordinates(4, 6, 2)
    assert rows.tolist()[:8] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert columns.tolist()[:8] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(r, c) for r in range(4) for c in range(6)]


def test_positions_of_the_trained_grid_are_read_unchanged() -> None:
    """At 6 x 6 patches the interpolation points are the grid's own points."""
    layer = PositionEmbedding(VISION, torch.float32)
    fill(layer)
    rows, columns = patch_coordinates(6, 6, 2)
    assert torch.allclose(layer([(6, 6)]), layer.weight[rows * 6 + columns], atol=1e-5)


def test_frames_of_different_sizes_keep_their_order() -> None:
    layer = PositionEmbedding(VISION, torch.float32)
    fill(layer)
    mixed = layer([(2, 4), (6, 2), (2, 4)])
    assert torch.equal(mixed, torch.cat([layer([(2, 4)]), layer([(6, 2)]), layer([(2, 4)])]))


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [3, 7, 3, 1, 6]])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_a_pack_is_attention_in_each_segment(lengths: list[int], causal: bool) -> None:
    config = SimpleNamespace(context_parallel_size=1, attention_dropout=0.0)
    mask = AttnMaskType.causal if causal else AttnMaskType.no_mask
    core = CoreAttention(config, 1, mask)
    total = sum(lengths)
    q, k, v = torch.randn(total, 4, 8), torch.randn(total, 2, 8), torch.randn(total, 2, 8)
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    ours = core(q, k, v, None, packed_seq_params=packed_segments(cu))
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = segment[:, None] == segment[None, :]
    if causal:
        visible &= torch.ones(total, total).tril().bool()
    heads = (t.transpose(0, 1) for t in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
    expected = F.scaled_dot_product_attention(*heads, attn_mask=visible).transpose(0, 1).flatten(1)
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_text_angles_give_each_frequency_to_one_axis(interleaved: bool) -> None:
    text = TextConfig(
        layers=1, hidden=8, heads=1, kv_heads=1, head_dim=16, ffn=8, vocab=8, mrope_section=(1, 1, 2),
        rotary_interleaved=interleaved,
    )  # fmt: skip
    positions = torch.tensor([[[3, 4]], [[10, 11]], [[100, 101]]])
    angles = TextRotary(text)(positions)
    assert angles.shape == (2, 1, 1, 8)
    frequency = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    expected = torch.tensor([3.0, 10.0, 100.0, 100.0]) * frequency
    pairs = expected.repeat_interleave(2) if interleaved else torch.cat([expected, expected])
    assert torch.allclose(angles[0, 0, 0], pairs)


def test_vision_angles_are_rows_then_columns() -> None:
    angles = VisionRotary(8, 10000.0)(torch.tensor([0, 3]), torch.tensor([0, 5]))
    frequency = torch.tensor([1.0, 10000.0**-0.5])
    half = torch.cat([3 * frequency, 5 * frequency])
    assert torch.allclose(angles[1, 0, 0], torch.cat([half, half]))


def test_fusion_refuses_a_wrong_number_of_features() -> None:
    embeddings = torch.zeros(6, 1, 4)
    with pytest.raises(ValueError, match="3 placeholders in the batch, but 2 visual features"):
        fuse(embeddings, torch.ones(2, 4), torch.tensor([1, 2, 3]))


def test_fusion_writes_features_where_the_placeholders_are() -> None:
    embeddings = torch.zeros(3, 2, 4)
    fused = fuse(embeddings, torch.arange(8.0).view(2, 4), torch.tensor([2, 3]))  # sample 0 token 2, sample 1 token 0
    assert fused[2, 0].tolist() == [0, 1, 2, 3]
    assert fused[0, 1].tolist() == [4, 5, 6, 7]
    assert fused.sum() == 28


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_frame_is_encoded_once_and_loads_are_even(ranks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = [tuple((2 * torch.randint(1, 20, (2,), generator=generator)).tolist()) for _ in range(40)]
    costs = [frame_cost(frame, VISION) for frame in frames]  # type: ignore[arg-type]
    shares = assign(costs, ranks)
    assert sorted(i for share in shares for i in share) == list(range(40))
    loads = [sum(costs[i] for i in share) for share in shares]
    best = max(sum(costs) / ranks, *costs)
    assert max(loads) <= 4 / 3 * best


def test_fewer_frames_than_ranks_leave_ranks_without_work() -> None:
    assert assign([5, 3], 4) == [[0], [1], [], []]


def test_context_ranks_hold_mirrored_chunks_of_each_segment() -> None:
    """By hand: segments of 8 and 4 tokens over 2 ranks are cut into chunks of 2 and 1; rank 0 has the outer ones."""
    outer, inner = (context_split([8, 4], rank, 2).mine.tolist() for rank in (0, 1))
    assert outer == [0, 1, 6, 7, 8, 11]
    assert inner == [2, 3, 4, 5, 9, 10]
    split = context_split([8, 4], 0, 2)
    assert split.order[split.places].tolist() == list(range(12))
    with pytest.raises(ValueError, match="2 x context = 8"):
        context_split([16, 12], 0, 4)
