"""What a vLLM server is asked, and how its answers are read (vLLM 0.32).

Generation: `POST /inference/v1/generate`, tokens in, tokens out (server flag --enable-scale-out); media as the patches
that training sees. Weights: the endpoints of its reinforcement learning API (VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_glmv.config.schema import VisionConfig
from megatron_glmv.inference.completion import LENGTH, STOP
from megatron_glmv.rl.rollout.remote import Question, Said
from megatron_glmv.rl.rollout.server import Json, Server, ServerError
from megatron_glmv.rl.rollout.wire_media import frames_of

GENERATE = "/inference/v1/generate"
CONTROL = ("/pause", "/resume", "/weight_checker", "/reset_prefix_cache", "/reset_encoder_cache", "/reset_mm_cache")
DISTRIBUTED = (
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/get_world_size",
)
DISK = ("/collective_rpc",)
RELOAD = "glmv_reload"
"""Method of our worker extension (vllm_worker.py)."""


@dataclass(frozen=True)
class VLLM:
    """The dialect of vLLM."""

    model: str
    vision: VisionConfig

    def check(self, server: Server, update: str) -> str:
        """The name of the model it serves. Raises ServerError where it lacks what is needed, with the flag to give."""
        served = [str(entry.get("id")) for entry in server.get("/v1/models").get("data", [])]
        name = self.model or (served[0] if len(served) == 1 else "")
        if name not in served:
            raise ServerError(f"{server.url} serves {', '.join(served)}, rl.server.model is {self.model!r}")
        paths = server.get("/openapi.json").get("paths", {})
        if GENERATE not in paths:
            raise ServerError(f"{server.url} has no {GENERATE}: start it with --enable-scale-out")
        needed = (*CONTROL, *(DISK if update == "disk" else DISTRIBUTED))
        missing = [path for path in needed if path not in paths]
        if missing:
            raise ServerError(f"{server.url} has no {missing[0]}: start it with VLLM_SERVER_DEV_MODE=1 (vLLM >= 0.32)")
        return name

    def ask(self, server: Server, question: Question) -> list[Said]:
        body = self.request(question)
        answer = server.post(GENERATE, body)
        expanded = answer.get("prompt_token_ids")
        if expanded is not None and expanded != body["token_ids"]:
            raise ServerError(f"{server.url} read {len(expanded)} prompt tokens, {len(body['token_ids'])} were sent")
        sent = body.get("features", {}).get("mm_placeholders")
        if (answer.get("mm_placeholders") or None) != sent:
            raise ServerError(f"{server.url} placed media at {answer.get('mm_placeholders')}, they are at {sent}")
        return [_said(choice, server) for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]

    def request(self, question: Question) -> Json:
        """The body of a GenerateRequest."""
        body: Json = {
            "model": self.model or None,
            "token_ids": question.token_ids,
            "return_token_ids": True,
            "sampling_params": {
                "n": question.count,
                "max_tokens": question.most,
                "temperature": 0.0 if question.greedy else 1.0,
                "top_p": 1.0,
                "seed": question.seed,
                "logprobs": 0,
                "stop_token_ids": list(question.stop),
                "ignore_eos": True,  # the stop tokens are ours alone, whatever the server's generation config has
                "detokenize": False,
            },
        }
        frames = list(frames_of(question.prompt, dict(question.pixels), self.vision))
        if frames:
            body["features"] = {
                "mm_hashes": {"image": [frame.key for frame in frames]},
                "mm_placeholders": {"image": [{"offset": frame.offset, "length": frame.length} for frame in frames]},
                "kwargs_data": {"image": [frame.data for frame in frames]},
            }
        return body

    # weights

    def pause(self, server: Server) -> None:
        """Ends what runs: nothing is asked while weights change, so there is nothing to lose."""
        server.post("/pause?mode=abort")

    def resume(self, server: Server) -> None:
        """With nothing left that was computed with older weights."""
        for cache in ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"):
            server.post(cache)
        server.post("/resume")

    def reload(self, server: Server, directory: str, version: str) -> None:
        server.post("/collective_rpc", {"method": RELOAD, "args": [directory]}, retry=False)
        server.post("/update_weight_version", {"new_version": version})

    def world_size(self, server: Server) -> int:
        return int(server.get("/get_world_size")["world_size"])

    def join(self, server: Server, address: str, port: int, offset: int, world: int) -> None:
        """Blocks until the trainer and all workers are there."""
        info = {"master_address": address, "master_port": port, "rank_offset": offset, "world_size": world}
        server.post("/init_weight_transfer_engine", {"init_info": info}, retry=False)

    def begin(self, server: Server) -> None:
        server.post("/start_weight_update", retry=False)

    def receive(self, server: Server, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[list[int]]) -> None:
        """Blocks while the tensors are broadcast."""
        info = {"names": list(names), "dtype_names": list(dtypes), "shapes": list(shapes)}
        server.post("/update_weights", {"update_info": info}, retry=False)

    def finish(self, server: Server, version: str) -> None:
        server.post("/finish_weight_update", {"weight_version": version}, retry=False)

    def checksums(self, server: Server) -> dict[str, str]:
        """Of the weights as the server holds them, by its own names: fused, and packed for its kernels."""
        found: dict[str, str] = server.post("/weight_checker", {"action": "checksum"})["checksums"]
        return found


def _said(choice: Json, server: Server) -> Said:
    reason = choice.get("finish_reason")
    if reason not in (STOP, LENGTH):
        raise ServerError(f"{server.url} ended an answer by {reason!r}")
    ids = tuple(choice.get("token_ids") or ())
    content = (choice.get("logprobs") or {}).get("content") or []
    if tuple(entry["token_id"] for entry in content) != ids:
        raise ServerError(f"{server.url} gave log-probabilities of other tokens than it said")
    return Said(ids, tuple(float(entry["logprob"]) for entry in content), reason)
