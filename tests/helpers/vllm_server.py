"""A real vLLM on CPU with a tiny random GLM-4.5V, exported from a checkpoint of ours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from helpers.answering import answering_config, make_answering_run

from megatron_glmv.checkpoint.hf.exporting import ExportOptions, export_hf
from megatron_glmv.data.patches import CLIP_MEAN, CLIP_STD

HEAD_DIM = 32
"""The least that vLLM's attention on CPU takes."""
ROOT = Path(__file__).parent.parent.parent
MODEL = "policy"
READY_S = 900


def make_export(run: Path) -> Path:
    """A run with a checkpoint of random weights, and beside it what vLLM loads."""
    checkpoint = make_answering_run(run, head_dim=HEAD_DIM)
    vision = answering_config(run, head_dim=HEAD_DIM).model.vision
    assets = run / "hf"
    shutil.copytree(run / "data" / "tokenizer", assets)
    sizes = {"patch_size": vision.patch, "temporal_patch_size": vision.temporal_patch, "merge_size": vision.merge}
    shared = {**sizes, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "processor_class": "Glm4vProcessor"}
    shared["size"] = {"shortest_edge": 512, "longest_edge": 1 << 20}
    image = {**shared, "image_processor_type": "Glm4vImageProcessor"}
    (assets / "preprocessor_config.json").write_text(json.dumps(image))
    video = {**shared, "video_processor_type": "Glm4vVideoProcessor", "fps": 2, "do_sample_frames": True}
    (assets / "video_preprocessor_config.json").write_text(json.dumps(video))
    (assets / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    export_hf(ExportOptions(ckpt=checkpoint, out=run / "export", assets=assets))
    return run / "export"


@contextlib.contextmanager
def serving(model: Path, python: str, log: Path) -> Iterator[str]:
    """The address of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-num-seqs", "32", "--skip-mm-profiling", "--enable-scale-out"]
    command += ["--logprobs-mode", "processed_logprobs", "--weight-transfer-config", '{"backend": "glmv"}']
    command += ["--worker-extension-cls", "megatron_glmv.rl.rollout.vllm_worker.Extension"]
    environment = {
        "PYTHONPATH": str(ROOT),
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_CI_ENV": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
        while not _healthy(url):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, "not ready in time: " + log.read_text()[-4000:]
            time.sleep(1)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
