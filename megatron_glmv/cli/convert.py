"""`glmv convert`: between transformers' checkpoints and ours, and whether two say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_glmv.config.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Between transformers' checkpoints and ours; whether two are equal.")

Workers = Annotated[int | None, typer.Option(min=1, help="Files written at a time; default: the cores.")]
MemoryLimit = Annotated[str, typer.Option(help="For anonymous memory, like 2GiB; fewer workers if need be.")]


@app.command("import")
def import_(
    out: Annotated[Path, typer.Option(help="New directory; a run starts from it with init_from=.")],
    hf: Annotated[Path | None, typer.Option(help="Directory of GLM-4.5V or GLM-4.1V.")] = None,
    text: Annotated[Path | None, typer.Option(help="Instead: GLM-4.5-Air or GLM-4-9B-0414, for the decoder.")] = None,
    vision: Annotated[Path | None, typer.Option(help="With --text: AIMv2, for the encoder.")] = None,
    rope_theta: Annotated[float | None, typer.Option(help="Rotary base; default: that of --text.")] = None,
    merger_ffn: Annotated[int | None, typer.Option(help="Width of the merger; default: the dense layers'.")] = None,
    patch_init: Annotated[str, typer.Option(help="How AIMv2's patch kernel gets a time axis: average, first.")] = "",
    seed: Annotated[int | None, typer.Option(help="Of the weights between --vision and --text; default 1234.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder; default: that of --hf or --text.")] = None,
    without_tokenizer: Annotated[
        bool, typer.Option("--without-tokenizer", help="Weights that are only scored.")
    ] = False,
    allow_rounded_bias: Annotated[
        bool, typer.Option("--allow-rounded-bias", help="Take expert biases that are not float32.")
    ] = False,
    mtp: Annotated[bool, typer.Option("--mtp", help="Keep the prediction (MTP) layer of --text or --hf.")] = False,
    workers: Workers = None,
    memory_limit: MemoryLimit = "",
) -> None:
    """safetensors of GLM-4.5V or GLM-4.1V, or of a text model and AIMv2 (where pre-training starts), to a checkpoint
    that any layout loads. Run again after a kill: it goes on."""
    from megatron_glmv.checkpoint.hf.importing import ImportOptions, import_hf
    from megatron_glmv.checkpoint.hf.memory import parse_size
    from megatron_glmv.checkpoint.hf.start import StartOptions

    limit = parse_size(memory_limit, "--memory-limit") if memory_limit else None
    start = {"rope_theta": rope_theta, "merger_ffn": merger_ffn, "patch_init": patch_init or None, "seed": seed}
    given = {name: value for name, value in start.items() if value is not None}
    source: Path | StartOptions
    if hf is not None and text is None and vision is None and not given:
        source = hf
    elif hf is None and text is not None and vision is not None:
        source = StartOptions(text, vision, **given)  # type: ignore[arg-type]  # each of its own type
    else:
        named = [f"--{name.replace('_', '-')}" for name in given]
        raise ConfigError("--hf", hf, f"goes without --text, --vision{', '.join(['', *named])}", "--hf, or both others")
    options = ImportOptions(source, out, tokenizer, without_tokenizer, allow_rounded_bias, workers, limit, mtp)
    print(import_hf(options, _say))


@app.command()
def export(
    ckpt: Annotated[Path, typer.Option(help="A step's directory, a run's checkpoints, or the run: then its newest.")],
    out: Annotated[Path, typer.Option(help="New directory.")],
    assets: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer, processor, config; default: the import's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32; default: as stored. Expert biases stay fp32.")] = "",
    max_shard_size: Annotated[str, typer.Option(help="Of a file, like 5GB.")] = "5GB",
    verify: Annotated[bool, typer.Option("--verify", help="Check the checkpoint's sha256 first.")] = False,
    workers: Workers = None,
    memory_limit: MemoryLimit = "",
) -> None:
    """A checkpoint to a directory that transformers loads. Run again after a kill: it goes on."""
    from megatron_glmv.checkpoint.hf.exporting import ExportOptions, export_hf
    from megatron_glmv.checkpoint.hf.memory import parse_size

    limit = parse_size(memory_limit, "--memory-limit") if memory_limit else None
    size = parse_size(max_shard_size, "--max-shard-size")
    print(export_hf(ExportOptions(ckpt, out, assets, dtype, size, verify, workers, limit), _say))


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(help="A directory of transformers', or a checkpoint or run of ours.")],
    b: Annotated[Path, typer.Argument(help="The other one, of either format.")],
    round_to: Annotated[str, typer.Option(help="bf16: one side may be the other, rounded.")] = "",
    logits: Annotated[
        bool, typer.Option("--logits", help="Also compute: transformers with one, our model with the other.")
    ] = False,
    given: Annotated[
        Path | None, typer.Option("--input", help="For --logits: outputs of transformers' processor (docs/score.md).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    workers: Workers = None,
    memory_limit: MemoryLimit = "",
) -> None:
    """Whether two checkpoints hold the same weights in every bit. Exit code 77 and the tensors, if not."""
    from megatron_glmv.checkpoint.hf.memory import parse_size
    from megatron_glmv.checkpoint.hf.verify import verify

    if given is not None and not logits:
        raise ConfigError("--input", given, "is for --logits", "give both")
    limit = parse_size(memory_limit, "--memory-limit") if memory_limit else None
    verdict = verify(a, b, round_to=round_to, workers=workers, memory_limit=limit)
    if not as_json:
        print(verdict)
    content, exit_code = verdict.to_json(), verdict.exit_code
    if logits and verdict.tensors:  # the models have the same shapes
        from megatron_glmv.inference.layers import compare_layers

        computed = compare_layers(a, b, given=given, round_to=round_to, memory_limit=limit, say=_say)
        content["layers"], exit_code = computed.to_json(), exit_code or computed.exit_code
        if not as_json:
            print(computed)
    if as_json:
        print(json.dumps(content, indent=1))
    raise typer.Exit(exit_code)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
