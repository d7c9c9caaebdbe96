"""What an SGLang server is asked, and how its answers are read (SGLang 0.5.23). Not run: SGLang has no build for CPUs;
requests are held against its own request classes (tests/rl/test_servers.py).

Images go as PNG in the size in which training sees them, so that the server's own resizing leaves them as they are,
with one placeholder each in the ids; the server expands it, and its count of prompt tokens has to be ours. Videos are
refused: the server would choose and decode their frames a second time.

Shapes: N patches, V values of a patch.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from megatron_glmv.config.schema import VisionConfig
from megatron_glmv.data.types import IMAGE, Grid
from megatron_glmv.inference.completion import LENGTH, STOP
from megatron_glmv.rl.rollout.remote import Question, Said
from megatron_glmv.rl.rollout.server import Json, Server, ServerError


@dataclass(frozen=True)
class SGLang:
    """The dialect of SGLang."""

    model: str
    vision: VisionConfig

    def check(self, server: Server, update: str) -> str:
        """The path of the model it serves. Raises ServerError where it is another than `rl.server.model`."""
        path = str(server.get("/model_info").get("model_path", ""))
        if self.model and self.model != path:
            raise ServerError(f"{server.url} serves {path}, rl.server.model is {self.model}")
        return path

    def ask(self, server: Server, question: Question) -> list[Said]:
        answer = server.post("/generate", self.request(question))
        choices = answer.get("", answer)  # a list where several answers were asked for
        choices = choices if isinstance(choices, list) else [choices]
        expected = len(question.token_ids)
        for choice in choices:
            read = choice["meta_info"].get("prompt_tokens")
            if read != expected:
                raise ServerError(f"{server.url} read {read} prompt tokens, training sees {expected}")
        return [_said(choice, server) for choice in choices]

    def request(self, question: Question) -> Json:
        """The body of a GenerateReqInput. Raises ServerError for a video."""
        media = question.prompt.media
        if any(medium.plan.kind != IMAGE for medium in media):
            raise ServerError("SGLang would decode a video in its own way: use rl.engine=vllm or inprocess for videos")
        body: Json = {
            "input_ids": collapsed(question),
            "sampling_params": {
                "n": question.count,
                "max_new_tokens": question.most,
                "temperature": 0.0 if question.greedy else 1.0,
                "top_p": 1.0,
                "top_k": -1,
                "sampling_seed": question.seed,
                "stop_token_ids": list(question.stop),
                "ignore_eos": False,
                "skip_special_tokens": False,
            },
            "return_logprob": True,
            "logprob_start_len": -1,
            "stream": False,
        }
        if media:
            body["image_data"] = [png(question.pixels[m.key], m.plan.grid, self.vision) for m in media]
        return body

    # weights

    def pause(self, server: Server) -> None:
        server.post("/pause_generation", {"mode": "abort"})

    def resume(self, server: Server) -> None:
        server.post("/flush_cache", plain=True)
        server.post("/continue_generation")

    def reload(self, server: Server, directory: str, version: str) -> None:
        body = {"model_path": directory, "weight_version": version, "keep_pause": True, "flush_cache": True}
        answer = server.post("/update_weights_from_disk", body, retry=False)
        if not answer.get("success"):
            raise ServerError(f"{server.url} did not load {directory}: {answer.get('message')}")

    def world_size(self, server: Server) -> int:
        raise ServerError("weights go to SGLang by disk: set rl.server.update=disk")

    def join(self, server: Server, address: str, port: int, offset: int, world: int) -> None:
        self.world_size(server)

    def begin(self, server: Server) -> None:
        self.world_size(server)

    def receive(self, server: Server, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[list[int]]) -> None:
        self.world_size(server)

    def finish(self, server: Server, version: str) -> None:
        self.world_size(server)

    def checksums(self, server: Server) -> dict[str, str]:
        answer = server.post("/weights_checker", {"action": "checksum"})
        return {"engine": str(answer.get("per_engine_checksum"))}


def collapsed(question: Question) -> list[int]:
    """The ids with one placeholder for each image."""
    ids, places = question.token_ids, question.prompt.visual_positions.tolist()
    dropped = {place for before, place in itertools.pairwise(places) if place == before + 1}
    return [token for place, token in enumerate(ids) if place not in dropped]


def png(patches: torch.Tensor, grid: Grid, vision: VisionConfig) -> str:
    """uint8 [N, V] of an image, back to pixels: a data URL. Nothing is lost."""
    p, m, t = vision.patch, vision.merge, vision.temporal_patch
    blocks = patches.cpu().reshape(grid.h // m, grid.w // m, m, m, 3, t, p, p)[..., 0, :, :]
    pixels = blocks.permute(0, 2, 5, 1, 3, 6, 4).reshape(grid.h * p, grid.w * p, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _said(choice: Json, server: Server) -> Said:
    info = choice["meta_info"]
    reason = (info.get("finish_reason") or {}).get("type")
    if reason not in (STOP, LENGTH):
        raise ServerError(f"{server.url} ended an answer by {reason!r}")
    ids = tuple(choice["output_ids"])
    told = info.get("output_token_logprobs") or []
    if tuple(token for _, token, *_ in told) != ids:
        raise ServerError(f"{server.url} gave log-probabilities of other tokens than it said")
    return Said(ids, tuple(float(value) for value, *_ in told), reason)
