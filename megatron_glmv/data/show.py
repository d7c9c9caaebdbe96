"""One sample exactly as it is trained: every token with its loss weight and position, the pixels it really gets.

Shapes: L tokens of the sample, N patches, V values of a patch, G media.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.text import Text
from safetensors.torch import save_file

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.lengths import Layouts
from megatron_glmv.data.media import Decoded, MediaDecoder
from megatron_glmv.data.patches import normalise, sample_frames
from megatron_glmv.data.sample import SampleLayout
from megatron_glmv.data.types import VIDEO

TRAINED, GIVEN, VISUAL = "bold black on green", "default", "dim cyan"


@dataclass(frozen=True, eq=False)
class Shown:
    """A sample as `lay_out` and `MediaDecoder` make it."""

    key: str
    domain: str
    layout: SampleLayout
    decoded: tuple[Decoded, ...]
    timestamps: tuple[float, ...]
    """Seconds of the sampled frames of all videos, in order."""


def load(layouts: Layouts, key: str) -> Shown:
    """Raises SampleError for an unknown key and for a sample that cannot be used, with its reason."""
    try:
        i = layouts.dataset.find(key)
    except KeyError:
        known = ", ".join(layouts.dataset.entry(n).key for n in range(min(3, len(layouts.dataset))))
        raise SampleError(
            key, f"no sample of this key in {layouts.dataset.directory}; there are {known}, ..."
        ) from None
    layout, entry = layouts(i), layouts.dataset.entry(i)
    items = [
        (plan, facts, layouts.dataset.member(i, facts.member))
        for plan, facts in zip(layout.plans, entry.media, strict=True)
    ]
    decoded = MediaDecoder(layouts.data, layouts.vision).decode(items) if items else []
    times = [
        second
        for plan, facts, _ in items
        if plan.kind == VIDEO
        for second in sample_frames(facts, layouts.data.video_fps, layouts.data.video_max_frames)[1]
    ]
    return Shown(key, entry.domain, layout, tuple(decoded), tuple(times))


def render(shown: Shown, layouts: Layouts) -> list[Text]:
    """Lines for a terminal: the text with its trained tokens marked, media, then token by token."""
    layout, tokenizer = shown.layout, layouts.tokenizer
    trained = int((layout.loss_weights > 0).sum())
    lines = [Text(f"{shown.key} ({shown.domain or 'other'}): {len(layout)} tokens, {trained} trained, "
                  f"{len(layout.visual_positions)} visual, template {layouts.data.template}")]  # fmt: skip
    for n, (plan, done) in enumerate(zip(layout.plans, shown.decoded, strict=True)):
        grid = f"{plan.grid.t} x {plan.grid.h} x {plan.grid.w} patches"
        lines.append(Text(f"{plan.kind} {n} {plan.member}: {plan.width} x {plan.height}, {grid}, by {done.decoder}"))
        if plan.frames:
            seconds = " ".join(f"{frame}@{int(plan.seconds[m // 2])}s" for m, frame in enumerate(plan.frames))
            lines.append(Text(f"  frames {seconds}"))
        if done.error:
            lines.append(Text(f"  does not decode: {done.error}", "red"))
    lines += [Text(""), _running_text(layout, layouts), Text("")]
    lines.append(Text("index  id      weight  time height width  token -> label"))
    visual = set(layout.visual_positions.tolist())
    for i in range(len(layout)):
        if i in visual and i - 1 in visual and i + 1 in visual:
            continue  # the middle of a row of placeholders says nothing new
        weight = float(layout.loss_weights[i])
        t, h, w = layout.position_ids[:, i].tolist()
        token = repr(tokenizer.decode([int(layout.input_ids[i])]))
        label = f" -> {tokenizer.decode([int(layout.labels[i])])!r}" if weight else ""
        style = TRAINED if weight else VISUAL if i in visual else GIVEN
        lines.append(
            Text(f"{i:5d}  {layout.input_ids[i]:6d}  {weight:6.2f}  {t:4d} {h:6d} {w:5d}  {token}{label}", style)
        )
    return lines


def _running_text(layout: SampleLayout, layouts: Layouts) -> Text:
    """The sample as text; what is trained to be said (the labels) is marked. Runs of placeholders are counted."""
    out = Text()
    visual = set(layout.visual_positions.tolist())
    said = np.concatenate([[0.0], layout.loss_weights[:-1]]) > 0  # input i is the label of i - 1
    i = 0
    while i < len(layout):
        end = i + 1
        same = (i in visual, bool(said[i]))
        while end < len(layout) and (end in visual, bool(said[end])) == same:
            end += 1
        if i in visual:
            out.append(f"[{end - i} visual]", VISUAL)
        else:
            out.append(layouts.tokenizer.decode(layout.input_ids[i:end].tolist()), TRAINED if said[i] else GIVEN)
        i = end
    if layout.loss_weights[-1] > 0:
        out.append(layouts.tokenizer.decode([int(layout.labels[-1])]), TRAINED)
    return out


def save(shown: Shown, layouts: Layouts, path: Path) -> None:
    """input_ids, labels, loss_weights [L]; position_ids [3, L]; pixel_values [N, V] float32, normalised;
    image_grid_thw, video_grid_thw [G, 3]; timestamps (seconds of the sampled frames). Raises SampleError where a medium
    does not decode."""
    layout = shown.layout
    errors = [f"{p.member}: {d.error}" for p, d in zip(layout.plans, shown.decoded, strict=True) if d.patches is None]
    if errors:
        raise SampleError(shown.key, "; ".join(errors))
    patches = [done.patches for done in shown.decoded if done.patches is not None]
    pixels = torch.cat(patches) if patches else torch.zeros(0, layouts.vision.patch_values, dtype=torch.uint8)

    def grids(video: bool) -> torch.Tensor:
        found = [(p.grid.t, p.grid.h, p.grid.w) for p in layout.plans if (p.kind == VIDEO) == video]
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)

    tensors = {
        "input_ids": torch.from_numpy(layout.input_ids),
        "labels": torch.from_numpy(layout.labels),
        "loss_weights": torch.from_numpy(layout.loss_weights),
        "position_ids": torch.from_numpy(np.ascontiguousarray(layout.position_ids)),
        "pixel_values": normalise(pixels, layouts.vision),
        "image_grid_thw": grids(video=False),
        "video_grid_thw": grids(video=True),
        "timestamps": torch.tensor(shown.timestamps, dtype=torch.float64),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
