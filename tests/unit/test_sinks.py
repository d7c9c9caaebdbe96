"""Each sink is read back with its own library; a missing one is refused by name."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import to_json
from megatron_glmv.train import sinks
from megatron_glmv.train.metrics import Recorder

RUN = sinks.description(to_json(tiny.config()), "0123456789abcdef")
RECORDS = [
    {"step": step, "loss": 5.0 / step, "grad_norm": 1.5, "lr": 1e-3, "tokens": 96 * step, "step_time_s": 0.1}
    for step in range(1, 6)
]


def record(run_dir: Path, names: tuple[str, ...], first: int = 0, last: int = 5) -> None:
    opened = sinks.open_sinks(names, run_dir, first)
    for sink in opened:
        sink.describe(RUN)
    recorder = Recorder(run_dir, 5, 1, first, sinks=opened)
    for line in RECORDS[first:last]:
        recorder.step(line)
    recorder.close()


def test_the_run_is_described(tmp_path: Path) -> None:
    assert RUN["config"]["optim"]["lr"] == 2e-3 and RUN["config"]["model"]["text"]["layers"] == 4
    assert RUN["environment"]["packages"]["megatron-core"] and RUN["code"]
    (tmp_path / "a.tar").write_bytes(b"12")
    (tmp_path / "index.json").write_text("{}")
    first = sinks.data_fingerprint(tmp_path)
    assert sinks.data_fingerprint(tmp_path) == first
    (tmp_path / "index.json").write_text("[]")
    assert sinks.data_fingerprint(tmp_path) != first


def test_a_run_that_starts_anew_writes_its_first_lines_once(tmp_path: Path) -> None:
    """RLCS has a line of step 0: killed before its first checkpoint, it evaluates and writes it again."""
    for _ in range(2):
        recorder = Recorder(tmp_path, 5, 1, 0)
        recorder.step({"step": 0, "tokens": 0, "step_time_s": 0.1})
        recorder.step(RECORDS[0])
        recorder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]


def test_tensorboard_reads_what_was_written_and_a_continued_run_shadows(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record(tmp_path, ("tensorboard",))
    record(tmp_path, ("tensorboard",), first=2)  # steps 3 to 5 once more, from the checkpoint of step 2
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    found = [(event.step, event.value) for event in reader.Scalars("loss")]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert [value for _, value in found] == pytest.approx([line["loss"] for line in RECORDS])
    assert {"loss", "grad_norm", "lr", "tokens"} <= set(reader.Tags()["scalars"]) and "step" not in reader.Tags()[
        "scalars"
    ]
    assert b"optim.lr: 0.002" in reader.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (extra: tracking)")
def test_mlflow_reads_what_was_written(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    record(tmp_path, ("mlflow",))
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("megatron_glmv").experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
        (line["step"], line["loss"]) for line in RECORDS
    ]
    assert run.data.params["config.optim.lr"] == "0.002" and run.data.params["data"] == RUN["data"]
    assert run.info.status == "FINISHED"


def wandb_records(data: bytes) -> Iterator[bytes]:
    """A .wandb file: seven bytes, then LevelDB's log format, blocks of 32 KiB of chunks (crc, length, kind)."""
    at, record = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield record
            record = b""


@pytest.mark.slow  # wandb starts a service process
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed (extra: tracking)")
def test_wandb_writes_an_offline_run_that_its_reader_reads(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    record(tmp_path, ("wandb",))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    losses, settings = [], {}
    for data in wandb_records(path.read_bytes()):
        line = wandb_internal_pb2.Record()
        line.ParseFromString(data)
        items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in line.history.item}
        losses += [items["loss"]] if "loss" in items else []
        settings |= {i.key: json.loads(i.value_json) for i in [*line.config.update, *line.run.config.update]}
    assert losses == [line["loss"] for line in RECORDS]
    assert settings["data"] == RUN["data"] and settings["config"]["optim"]["lr"] == 2e-3


def test_a_missing_library_is_a_config_error_that_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sinks.MODULES, "wandb", "wandb_that_is_not_there")
    with pytest.raises(ConfigError, match=r"wandb_that_is_not_there is not installed.*megatron_glmv\[tracking\]"):
        sinks.require(("tensorboard", "wandb"))


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    import subprocess

    code = "import sys, megatron_glmv.train.sinks; print([m for m in ('wandb', 'mlflow') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
