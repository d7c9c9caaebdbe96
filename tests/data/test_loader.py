"""Packs as training gets them: what is in them, in what order, and what happens when samples or processes fail."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from data import poisoned_worker, small_set
from data.small_set import TRUNCATED, UNREADABLE, VISION, data_config

from megatron_glmv.config.schema import TrainConfig
from megatron_glmv.data.batches import BatchMaker, Pack
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset, build_index
from megatron_glmv.data.lengths import Layouts, measure
from megatron_glmv.data.loader import PackLoader
from megatron_glmv.data.packing import ALIGN
from megatron_glmv.data.pool import WorkerPool
from megatron_glmv.data.quarantine import read_ledger
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.tokenizer import Tokenizer, train_tokenizer
from megatron_glmv.data.types import PackedBatch


class Demo(NamedTuple):
    directory: Path
    dataset: ShardDataset
    tokenizer: Tokenizer

    def loader(self, *, global_batch: int = 4, rank: int = 0, size: int = 1, **options: Any) -> PackLoader:
        run_dir, timeout = options.pop("run_dir", None), options.pop("worker_timeout", 60.0)
        batch_at = options.pop("batch_at", None)
        return PackLoader(
            ShardDataset(self.dataset.directory),
            data_config(**options),
            VISION,
            self.tokenizer,
            seed=5,
            global_batch=global_batch,
            dp_rank=rank,
            dp_size=size,
            run_dir=run_dir,
            worker_timeout=timeout,
            batch_at=batch_at,
        )

    def layouts(self, **options: Any) -> Layouts:
        return Layouts(self.dataset, self.tokenizer, data_config(**options), VISION)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    directory = tmp_path_factory.mktemp("small_set")
    yield Demo(directory, *small_set.make(directory))


def same(a: PackedBatch, b: PackedBatch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(PackedBatch)]
    return all(torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def ids(batches: list[PackedBatch]) -> list[tuple[str, ...]]:
    return [batch.sample_ids for batch in batches]


def by_key(dataset: ShardDataset, *keys: str) -> Pack:
    return Pack(tuple(dataset.find(key) for key in keys), (512,) * len(keys))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Order without the cost of decoding."""
    directory = tmp_path_factory.mktemp("text")
    return Demo(directory, *small_set.make(directory, images=0, clips=0, texts=60))


KEYS = ("image-002", "text-003", "clip-001", "image-004")


def test_a_pack_is_its_samples_side_by_side(demo: Demo) -> None:
    maker = BatchMaker(demo.layouts())
    pack, failures = maker.make(by_key(demo.dataset, *KEYS))
    singles = [maker.make(by_key(demo.dataset, key))[0] for key in KEYS]
    assert not failures
    assert pack.sample_ids == KEYS
    for n, single in enumerate(singles):
        start, end = pack.cu_seqlens[n].item(), pack.cu_seqlens[n + 1].item()
        assert start % ALIGN == 0
        length = end - start
        assert length == single.cu_seqlens[1].item()
        for name in ("input_ids", "labels", "loss_weights", "padding"):
            assert torch.equal(getattr(pack, name)[start:end], getattr(single, name)[:length]), name
        assert torch.equal(pack.position_ids[:, start:end], single.position_ids[:, :length])
    starts = pack.cu_seqlens.tolist()
    assert torch.equal(pack.pixel_values, torch.cat([single.pixel_values for single in singles]))
    assert torch.equal(pack.grids, torch.cat([single.grids for single in singles]))
    shifted = [single.visual_positions + start for single, start in zip(singles, starts, strict=False)]
    assert torch.equal(pack.visual_positions, torch.cat(shifted))
    assert starts[-1] == len(pack.input_ids) == 512
    assert pack.padding[starts[-2] :].all()
    assert pack.loss_weights[pack.padding].sum() == 0
    assert len(pack.visual_positions) * 4 == len(pack.pixel_values)
    assert pack.decoders == ("dali",) * 3


def test_a_pack_without_media_has_no_pixels(demo: Demo) -> None:
    batch, _ = BatchMaker(demo.layouts()).make(by_key(demo.dataset, "text-001"))
    assert batch.pixel_values.shape == (0, VISION.patch_values)
    assert batch.pixel_values.dtype == torch.uint8
    assert batch.grids.shape == (0, 3)
    assert batch.visual_positions.shape == (0,)


def test_a_sample_that_does_not_decode_leaves_a_hole_and_nothing_shifts(demo: Demo, tmp_path: Path) -> None:
    """The same pack from a data set in which that image is sound differs only inside the hole."""
    keys = ("image-002", TRUNCATED, "clip-001", "text-003")
    sound = Demo(tmp_path, *small_set.make(tmp_path, sound=True))
    holed, failures = BatchMaker(demo.layouts()).make(by_key(demo.dataset, *keys))
    whole, none = BatchMaker(sound.layouts()).make(by_key(sound.dataset, *keys))
    assert not none
    assert [(f.key, f.shard) for f in failures] == [(TRUNCATED, "shard-000000.tar")]
    assert "0.png" in failures[0].reason
    assert holed.failed == (TRUNCATED,)
    assert holed.decoders == ("dali", "none", "dali")
    start, end = holed.cu_seqlens[1].item(), holed.cu_seqlens[2].item()
    for name in ("input_ids", "position_ids", "cu_seqlens", "padding", "grids", "visual_positions", "sample_ids"):
        a, b = getattr(holed, name), getattr(whole, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
    for name in ("labels", "loss_weights"):
        a, b = getattr(holed, name).clone(), getattr(whole, name).clone()
        assert not a[start:end].any()
        assert b[start:end].any()
        a[start:end] = b[start:end] = 0
        assert torch.equal(a, b), name
    first = int(whole.grids[0].prod())
    last = first + int(whole.grids[1].prod())
    assert (holed.pixel_values[first:last] == 128).all()
    assert torch.equal(holed.pixel_values[:first], whole.pixel_values[:first])
    assert torch.equal(holed.pixel_values[last:], whole.pixel_values[last:])


def test_decoder_processes_make_the_same_batches_as_the_rank_itself(demo: Demo) -> None:
    with demo.loader(global_batch=2) as inline, demo.loader(global_batch=2, workers=2) as spread:
        for _ in range(5):
            for a, b in zip(inline.next_step(), spread.next_step(), strict=True):
                assert same(a, b)


def test_a_global_batch_is_the_same_for_any_number_of_replicas(text: Demo) -> None:
    steps = 6
    with text.loader() as alone:
        expected = [ids(alone.next_step()) for _ in range(steps)]
        assert [alone.step_ids(s) for s in range(steps)] == [
            [key for pack in step for key in pack] for step in expected
        ]
    for size in (2, 4):
        loaders = [text.loader(rank=rank, size=size) for rank in range(size)]
        for step in range(steps):
            parts = [ids(loader.next_step()) for loader in loaders]
            assert [parts[i % size][i // size] for i in range(4)] == expected[step]
            assert loaders[-1].step_ids(step) == [key for pack in expected[step] for key in pack]


def test_a_run_resumes_at_any_step_on_another_number_of_replicas_or_packs_a_step(text: Demo) -> None:
    with text.loader(global_batch=6) as whole:
        expected = [ids(whole.next_step()) for _ in range(12)]
    for stop, size, batch in ((1, 1, 6), (5, 2, 6), (7, 3, 6), (4, 2, 2), (3, 1, 12)):
        first = text.loader(global_batch=6, rank=1, size=2)
        for _ in range(stop):
            first.next_step()
        state = json.loads(json.dumps(first.state_dict()))
        resumed = [text.loader(global_batch=batch, rank=rank, size=size) for rank in range(size)]
        for loader in resumed:
            loader.load_state_dict(state)
        flat = [pack for step in expected[stop:] for pack in step]
        for step in range(2):
            parts = [ids(loader.next_step()) for loader in resumed]
            assert [parts[i % size][i // size] for i in range(batch)] == flat[step * batch : (step + 1) * batch]
            assert resumed[0].step_ids(stop + step) == [key for pack in flat[step * batch :][:batch] for key in pack]


def test_a_growing_batch_takes_the_same_packs_in_the_same_order(text: Demo) -> None:
    """Also resumed inside a width, where widths change while steps are prefetched, and on other replicas."""
    train = TrainConfig(global_batch=6, batch_until={2: 2, 4: 4})
    assert [train.batch_at(done) for done in range(6)] == [2, 2, 4, 4, 6, 6]
    with text.loader(global_batch=2) as constant:
        flat = [pack for _ in range(12) for pack in ids(constant.next_step())]
    with text.loader(global_batch=6, batch_at=train.batch_at, workers=1) as whole:
        steps, states = [], []
        for _ in range(6):
            steps.append(ids(whole.next_step()))
            states.append(json.loads(json.dumps(whole.state_dict())))
        assert [key for pack in steps[3] for key in pack] == whole.step_ids(3)
    assert [len(step) for step in steps] == [2, 2, 4, 4, 6, 6]
    assert [pack for step in steps for pack in step] == flat
    for done in (1, 3):
        loaders = [text.loader(global_batch=6, batch_at=train.batch_at, rank=rank, size=2) for rank in range(2)]
        for loader in loaders:
            loader.load_state_dict(states[done - 1])
        for step in range(done, 6):
            parts = [ids(loader.next_step()) for loader in loaders]
            assert [parts[i % 2][i // 2] for i in range(len(steps[step]))] == steps[step]


def test_a_state_of_other_data_is_refused(text: Demo) -> None:
    state = text.loader().state_dict()
    with pytest.raises(DataError, match="data position"):
        text.loader(pack_tokens=1024).load_state_dict(state)


def test_seeking_drops_what_was_prefetched(demo: Demo) -> None:
    with demo.loader(global_batch=1, workers=1) as loader:
        first = [loader.next_step()[0] for _ in range(3)]
        loader.seek(1)
        assert [same(loader.next_step()[0], batch) for batch in first[1:]] == [True, True]


def test_bad_samples_are_in_the_ledger_once_with_reasons(demo: Demo, tmp_path: Path) -> None:
    loaders = [demo.loader(rank=rank, size=2, run_dir=tmp_path) for rank in range(2)]
    for _ in range(8):
        for loader in loaders:
            loader.next_step()
    ledger = {bad.key: bad for bad in read_ledger(tmp_path / "quarantine.jsonl")}
    assert ledger.keys() == {TRUNCATED, UNREADABLE}
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
    assert all("0.png" in bad.reason and bad.shard == "shard-000000.tar" for bad in ledger.values())
    seen = {key for loader in loaders for step in range(8) for key in loader.step_ids(step)}
    assert UNREADABLE not in seen
    assert TRUNCATED in seen


def test_more_bad_samples_than_the_budget_end_the_run_as_a_data_error(demo: Demo, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quarantine_budget=0 .*") as caught:
        demo.loader(run_dir=tmp_path, quarantine_budget=0.0)
    assert caught.value.exit_code == 65
    loader = demo.loader(run_dir=tmp_path, quarantine_budget=0.01)  # one unusable of 39 passes, a second failure not
    with pytest.raises(DataError, match="image-013"):
        for _ in range(40):
            loader.next_step()


def test_long_text_is_cut_and_long_media_left_out(demo: Demo) -> None:
    loader = demo.loader(pack_tokens=64, pack_window=8)
    assert loader.truncated > 0
    assert loader.too_long > 0
    for _ in range(10):
        for batch in loader.next_step():
            assert len(batch.input_ids) == 64
    with pytest.raises(ValueError, match="replicas"):
        demo.loader(global_batch=3, rank=0, size=2)


def test_a_long_document_is_several_samples_and_each_medium_is_decoded_once_an_epoch(tmp_path: Path) -> None:
    """Three images and text, 200 tokens in packs of 64; the same through decoder processes and after a resume."""
    media = {f"{n}.png": small_set.png(n) for n in range(3)}
    content: list[dict[str, str]] = []
    for name in media:
        content += [{"type": "text", "text": "What colour? red green blue " * 8}, {"type": "image", "image": name}]
    page = {"id": "page", "messages": [{"role": "document", "content": content}], "domain": "page"}
    chat = {"id": "chat", "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]}
    with ShardWriter(tmp_path / "shards") as writer:
        writer.add("page", page, media)
        writer.add("chat", chat, media)
    build_index(tmp_path / "shards")
    train_tokenizer(["What colour? red green blue"] * 9, tmp_path / "tokenizer", 320)
    small = Demo(tmp_path, ShardDataset(tmp_path / "shards"), Tokenizer.load(tmp_path / "tokenizer"))
    whole = small.layouts()(small.dataset.find("page"))
    options: dict[str, Any] = {"pack_tokens": 64, "pack_window": 4, "global_batch": 1}
    with small.loader(**options) as inline, small.loader(workers=1, **options) as spread:
        assert (inline.split, inline.too_long, inline.usable) == (1, 1, 1), "the chat is left out, not split"
        spans = whole.parts(64)
        assert len(spans) > 3
        lengths = {f"page#{start}": (start, length) for start, length in spans}
        found: dict[str, torch.Tensor] = {}
        steps = 0
        while len(found) < len(spans):
            names = inline.step_ids(steps)
            (batch,), (other,) = inline.next_step(), spread.next_step()
            assert same(batch, other)
            assert not batch.failed
            steps, at = steps + 1, 0
            for name, begin in zip(names, batch.cu_seqlens.tolist(), strict=False):
                start, length = lengths[name]
                piece = whole.part(start, length)
                assert batch.input_ids[begin : begin + length].tolist() == piece.input_ids.tolist()
                found[name] = batch.pixel_values[at : at + piece.patches]
                at += piece.patches
            assert at == len(batch.pixel_values)
        state = json.loads(json.dumps(inline.state_dict()))
        following = inline.step_ids(steps)
    pixels = [found[name] for name in lengths]
    alone, _ = BatchMaker(small.layouts()).make(by_key(small.dataset, "page"))
    assert torch.equal(torch.cat(pixels), alone.pixel_values)
    with small.loader(**options) as resumed:
        resumed.load_state_dict(state)
        assert resumed.step_ids(steps) == following


def test_a_killed_decoder_process_is_replaced_and_the_batches_stay_the_same(demo: Demo) -> None:
    with demo.loader(global_batch=1) as inline:
        expected = [inline.next_step()[0] for _ in range(6)]
    with demo.loader(global_batch=1, workers=1) as loader:
        pool = loader._pool
        assert pool is not None
        assert same(loader.next_step()[0], expected[0])
        killed = pool.pids[0]
        os.kill(killed, signal.SIGKILL)
        assert all(same(loader.next_step()[0], batch) for batch in expected[1:3])
        os.kill(pool.pids[0], signal.SIGINT)  # Ctrl-C reaches the whole process group: the rank decides, not the worker
        time.sleep(0.2)
        assert all(same(loader.next_step()[0], batch) for batch in expected[3:])
        assert pool.pids[0] != killed


@pytest.mark.slow
def test_a_sample_that_kills_or_stalls_the_decoder_becomes_a_hole(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes whose decoder kills itself, or sleeps, at two of the files."""
    poison = {poisoned_worker.DEADLY: "image-002", poisoned_worker.SLEEPY: "image-004"}
    for variable, key in poison.items():
        monkeypatch.setenv(variable, str(len(demo.dataset.member(demo.dataset.find(key), "0.png"))))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pool = WorkerPool(demo.layouts(), 1, 12.0, module="data.poisoned_worker")
    try:
        for task, keys in enumerate([("image-000",), KEYS, ("image-000", "text-001")]):
            pool.submit(task, by_key(demo.dataset, *keys))
        assert pool.result(0)[0].failed == ()
        batch, failures = pool.result(1)
        assert pool.result(2)[0].failed == ()
    finally:
        pool.close()
    assert batch.sample_ids == KEYS
    assert batch.failed == ("image-002", "image-004")
    assert "SIGKILL" in failures[0].reason
    assert "silent" in failures[1].reason
    sound, _ = BatchMaker(demo.layouts()).make(by_key(demo.dataset, *KEYS))
    assert torch.equal(sound.input_ids, batch.input_ids)
    start, end = sound.cu_seqlens[2].item(), sound.cu_seqlens[3].item()
    assert torch.equal(sound.loss_weights[start:end], batch.loss_weights[start:end])


def test_no_decoder_process_outlives_a_killed_rank(demo: Demo) -> None:
    program = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from data import small_set; from megatron_glmv.data.index import ShardDataset\n"
        "from megatron_glmv.data.loader import PackLoader; from megatron_glmv.data.tokenizer import Tokenizer\n"
        "d = Path(sys.argv[1])\n"
        "loader = PackLoader(ShardDataset(d / 'shards'), small_set.data_config(workers=2), small_set.VISION,\n"
        "                    Tokenizer.load(d / 'tokenizer'), seed=1, global_batch=1)\n"
        "print(*loader._pool.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    tests = str(Path(__file__).parents[1])
    rank = subprocess.Popen(
        [sys.executable, "-c", program, str(demo.directory), tests], stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    workers = [int(pid) for pid in rank.stdout.readline().split()]
    assert len(workers) == 2
    rank.kill()
    rank.wait()
    rank.stdout.close()
    deadline = time.monotonic() + 60  # they may still be importing torch, on a busy machine
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker is still there 60 s after its rank was killed"
        time.sleep(0.05)


def running(pid: int) -> bool:
    """A process that has ended and waits for the machine's init to notice is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_finds_the_data_unusable_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    dataset, tokenizer = small_set.make(tmp_path, images=8, clips=0, texts=4)
    loader = Demo(tmp_path, dataset, tokenizer).loader(workers=1, global_batch=1)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with loader, pytest.raises(DataError, match="tokenizer"):
        for _ in range(3):
            loader.next_step()


def test_lengths_are_counted_once_and_belong_to_template_and_budgets(tmp_path: Path) -> None:
    dataset, tokenizer = small_set.make(tmp_path, images=6, clips=1, texts=3)
    layouts = Layouts(dataset, tokenizer, data_config(), VISION)
    lengths = measure(layouts)
    files = list((dataset.directory / "lengths").glob("*.safetensors"))
    assert len(files) == 1
    stamp = files[0].stat().st_mtime_ns
    again = measure(Layouts(dataset, tokenizer, data_config(pack_tokens=64), VISION))
    assert files[0].stat().st_mtime_ns == stamp
    assert (again.tokens == lengths.tokens).all()
    assert again.errors == lengths.errors
    for i in range(len(dataset)):
        if i in lengths.errors:
            assert lengths.tokens[i] == 0
            continue
        layout = layouts(i)
        assert (lengths.tokens[i], lengths.visual[i]) == (len(layout), len(layout.visual_positions))
    other = measure(Layouts(dataset, tokenizer, data_config(template="glm41v"), VISION))
    assert (other.trained != lengths.trained).any()
    smaller = measure(Layouts(dataset, tokenizer, data_config(video_max_pixels=12544 * 2), VISION))
    assert smaller.tokens.sum() < lengths.tokens.sum()
    files[0].write_bytes(files[0].read_bytes()[:100])  # a damaged file is counted again
    assert (measure(layouts).tokens == lengths.tokens).all()


def test_processes_that_start_together_count_once(tmp_path: Path) -> None:
    small_set.make(tmp_path, images=4, clips=0, texts=400)
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from data import small_set; from megatron_glmv.data import lengths\n"
        "from megatron_glmv.data.index import ShardDataset; from megatron_glmv.data.tokenizer import Tokenizer\n"
        "d = Path(sys.argv[1]); counted = []\n"
        "count = lengths._count; lengths._count = lambda layouts: counted.append(1) or count(layouts)\n"
        "layouts = lengths.Layouts(ShardDataset(d / 'shards'), Tokenizer.load(d / 'tokenizer'),\n"
        "                          small_set.data_config(), small_set.VISION)\n"
        "sys.stdin.readline()\n"
        "print(len(counted) + 0 * int(lengths.measure(layouts).tokens.sum()), len(counted))\n"
    )
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", program, str(tmp_path), tests]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate("go\n") for process in processes]
    assert sorted(int(out.split()[1]) for out, _ in answers) == [0, 0, 1]


def test_making_a_pack_costs_little_beside_decoding(demo: Demo) -> None:
    """CPU time of reading, laying out and collating 1,400 tokens with 16 images, decoding apart."""
    maker = BatchMaker(demo.layouts(pack_tokens=1408))
    keys = [f"image-{i:03d}" for i in range(24) if f"image-{i:03d}" not in (TRUNCATED, UNREADABLE)][:16]
    pack = by_key(demo.dataset, *keys, *[f"text-{i:03d}" for i in (1, 2, 5, 6, 9)])
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        prepared = [maker._prepare(*item) for item in pack.items()]
        middle = time.process_time()
        samples = maker._decode(prepared)
        decoded = time.process_time()
        maker._finish(pack, samples)
        best = min(best, middle - start + time.process_time() - decoded)
    print(f"{len(keys)} images, {sum(len(s.layout) for s in samples)} tokens: {best * 1e3:.1f} ms beside decoding")
    assert best < 0.015
