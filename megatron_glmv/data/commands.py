"""What `glmv data stats`, `glmv data show` and `glmv data template` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import Config
from megatron_glmv.data import histogram, pack_report, show, stats
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.lengths import Layouts
from megatron_glmv.data.template_check import check_template
from megatron_glmv.data.tokenizer import Tokenizer

BUDGETS = (8192, 32768)
"""Packs of GLM's pre-training and of its long-context stage."""
PRESET_PICTURE = 2000
"""Patches of a picture in the preset mixture."""


def config_of(overrides: Sequence[str], default: str = "tiny_pretrain") -> Config:
    """The config of `glmv train OVERRIDES`. Raises ConfigError."""
    named = any(override.startswith("experiment=") for override in overrides)
    return compose([*([] if named else [f"experiment={default}"]), *overrides])


def open_layouts(directory: Path, config: Config) -> Layouts:
    """Raises DataError."""
    dataset = ShardDataset(directory)
    tokenizer = Tokenizer.load(config.data.tokenizer or directory.resolve().parent / "tokenizer")
    return Layouts(dataset, tokenizer, config.data, config.model.vision)


def show_stats(directory: Path, overrides: Sequence[str], *, pack: bool, png: Path | None) -> None:
    config = config_of(overrides)
    found = stats.collect(open_layouts(directory, config))
    console = Console()
    table = Table(*stats.COLUMNS)
    for row in found.rows():
        table.add_row(*row)
    console.print(table)
    panels = {"tokens of a sample": found.lengths.tokens, "visual tokens of a sample": found.lengths.visual}
    if found.lengths.frames.any():
        panels["frames of a sample"] = found.lengths.frames
    for title, values in panels.items():
        if values.any():
            print("\n".join(histogram.as_text(title, values)))
    if png is not None:
        histogram.as_png(png, panels)
        print(f"histograms: {png}")
    for reason in sorted(set(found.lengths.errors.values()))[:10]:
        print(f"unusable: {reason}")
    if pack:
        data, lengths = config.data, found.lengths
        work = Cost.of(config.model).samples(lengths.tokens, lengths.patches, lengths.pictures)
        print(
            "\n".join(pack_report.report(lengths.tokens, work, data.pack_tokens, data.pack_window, config.train.seed))
        )


def show_preset(overrides: Sequence[str]) -> None:
    """Packing of the preset mixture, under the cost of GLM-4.5V unless another experiment is named."""
    config = config_of(overrides, "glm45v_pretrain")
    tokens, patches = pack_report.preset()
    for budget in BUDGETS:
        kept = np.minimum(tokens, budget)
        work = Cost.of(config.model).samples(kept, patches, np.maximum(1, patches // PRESET_PICTURE))
        print("\n".join(pack_report.report(tokens, work, budget, config.data.pack_window, config.train.seed)))


def show_sample(shard: Path, key: str, overrides: Sequence[str], *, save: Path | None) -> None:
    layouts = open_layouts(shard if shard.is_dir() else shard.parent, config_of(overrides))
    try:
        shown = show.load(layouts, key)
        if not shard.is_dir():
            where = layouts.dataset.entry(layouts.dataset.find(key)).shard
            if where != shard.name:
                raise SampleError(key, f"lies in {where}, not in {shard.name}")
        for line in show.render(shown, layouts):
            Console().print(line)
        if save is not None:
            show.save(shown, layouts, save)
            print(f"arrays: {save}")
    except SampleError as error:
        raise DataError(error.key, error.reason) from error


def show_template(directory: Path, template: str) -> bool:
    """Prints how each kind of conversation compares; True if all are equal."""
    found = check_template(directory, template)
    for difference in found:
        print(f"{'differs' if difference else 'equal':8} {difference.probe.name}")
        if difference:
            print(f"         ours   {difference.ours!r}\n         theirs {difference.theirs!r}")
    equal = sum(not difference for difference in found)
    print(
        f"{directory}: {equal} of {len(found)} kinds of conversation are rendered as the template {template} has them"
    )
    return equal == len(found)
