"""How many decoder layers each pipeline chunk gets, so that chunks take equally long. Pure arithmetic.

A cost is the multiply-adds of one token of a pack on the ranks of a stage, forward (backward is twice that everywhere).
Counted are matrix products. Left out are attention's scores, which add the same to every layer of the decoder, and in
the encoder 2 x patches of a frame against 28 million a patch and block: a tenth of GLM-4.5V's at 1,000 patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .schema import Config, TextConfig, VisionConfig


def layer_cost(text: TextConfig, layer: int) -> int:
    """Of decoder layer `layer`, counted from 0."""
    attention = text.hidden * text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    moe = text.moe
    if moe is None or layer < moe.first_dense:
        return attention + 3 * text.hidden * text.ffn
    return attention + text.hidden * (3 * (moe.topk * moe.ffn + moe.shared_ffn) + moe.experts)


def visual_token_cost(vision: VisionConfig, hidden: int) -> int:
    """Of the encoder and merger for one visual token, which is merge^2 patches."""
    block = 4 * vision.hidden**2 + 3 * vision.hidden * vision.ffn
    patch = vision.patch_values * vision.hidden + vision.depth * block + vision.hidden * hidden
    return vision.merge**2 * patch + hidden * hidden + 3 * hidden * vision.merger_ffn


def part_costs(config: Config) -> tuple[float, list[int], int]:
    """(what comes before the layers, each layer, what comes behind them: the output layer, and where there is a
    prediction layer that, its projection and the output layer once more)."""
    text, parallel = config.model.text, config.parallel
    copies = 1 if parallel.encoder_data else parallel.context
    copies *= 1 if parallel.encoder_data or parallel.encoder_tensor else parallel.tensor
    encoder = visual_token_cost(config.model.vision, text.hidden) * parallel.pipeline_visual_share * copies
    head = text.hidden * text.vocab
    behind = head + config.model.mtp.layers * (2 * text.hidden**2 + layer_cost(text, text.layers) + head)
    return encoder, [layer_cost(text, layer) for layer in range(text.layers)], behind


def split(before: float, layers: Sequence[float], behind: float, chunks: int) -> tuple[int, ...]:
    """Layers of each chunk, at least one: the dearest chunk is as cheap as can be, and the squares sum to the least
    among those. Raises ValueError for more chunks than layers."""
    count = len(layers)
    if not 1 <= chunks <= count:
        raise ValueError(f"{count} layers cannot be cut into {chunks} chunks")
    sums = [0.0]
    for each in layers:
        sums.append(sums[-1] + each)

    def cost(first: int, last: int) -> float:
        return sums[last] - sums[first] + (before if first == 0 else 0) + (behind if last == count else 0)

    # best[n]: (dearest chunk, sum of squares, cuts) of the first n layers in the chunks so far
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {
        n: (cost(0, n), cost(0, n) ** 2, (n,)) for n in _ends(1, chunks, count)
    }
    for made in range(2, chunks + 1):
        nearer = {}
        for end in _ends(made, chunks, count):
            nearer[end] = min(
                (max(dearest, cost(start, end)), squares + cost(start, end) ** 2, (*cuts, end))
                for start, (dearest, squares, cuts) in best.items()
                if start < end
            )
        best = nearer
    cuts = (0, *best[count][2])
    return tuple(end - start for start, end in pairwise(cuts))


def _ends(made: int, chunks: int, count: int) -> range:
    """Where chunk number `made` may end, so that every chunk gets a layer."""
    return range(count, count + 1) if made == chunks else range(made, count - (chunks - made) + 1)


def chunk_layers(config: Config) -> tuple[int, ...] | None:
    """Decoder layers of each chunk (pipeline x virtual_pipeline, in the order of the layers); None: megatron-core's
    even split."""
    parallel = config.parallel
    if parallel.pipeline_split == "balanced" and parallel.pipeline > 1:
        return split(*part_costs(config), parallel.pipeline * parallel.virtual_pipeline)
    return parallel.pipeline_layers
