"""`glmv generate`: answers one conversation from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.types import IMAGE, VIDEO, Json
from megatron_glmv.evaluate.dataset import with_absolute_media
from megatron_glmv.inference.completion import FAILED, LENGTH, Completion
from megatron_glmv.inference.load import load_for_inference
from megatron_glmv.inference.sampling import Sampling


def main(
    ckpt: Path,
    *,
    image: Sequence[Path] = (),
    video: Sequence[Path] = (),
    prompt: str = "",
    messages: Path | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    thinking: bool = False,
    tokenizer: Path | None = None,
) -> Completion:
    """Prints the answer and returns it.

    Either `messages`, a JSON file with a conversation (media paths relative to it), or images, videos and a prompt,
    shown in this order. Raises DataError for what cannot be asked, ConfigError for sampling options out of range, and
    what `load_for_inference` raises.
    """
    sampling = Sampling(temperature, top_p, seed)
    asked = read_messages(messages) if messages else one_turn(image, video, prompt)
    with load_for_inference(ckpt, tokenizer) as loaded:
        try:
            built = loaded.prompts.build({"id": "prompt", "messages": asked}, thinking=thinking)
        except SampleError as error:
            raise DataError(error.key, error.reason) from error
        (answer,) = loaded.engine.generate([built], max_new_tokens, sampling)
    if answer.finish == FAILED:
        raise DataError("the prompt", answer.error)
    print(answer.text + ("" if answer.finish != LENGTH else f" [cut at {max_new_tokens} tokens]"), flush=True)
    return answer


def one_turn(image: Sequence[Path], video: Sequence[Path], prompt: str) -> list[Json]:
    """A conversation of one user turn. Raises DataError when it would be empty."""
    parts: list[Json] = [{"type": IMAGE, IMAGE: str(path)} for path in image]
    parts += [{"type": VIDEO, VIDEO: str(path)} for path in video]
    parts += [{"type": "text", "text": prompt}] if prompt else []
    if not parts:
        raise DataError("the prompt", "is empty: give --prompt, --image, --video or --messages")
    return [{"role": "user", "content": parts}]


def read_messages(path: Path) -> list[Json]:
    """A conversation from {"messages": [...]} or the list alone; an answer at its end is dropped. Raises DataError."""
    try:
        loaded: Any = json.loads(path.read_text(encoding="utf-8"))
        listed = loaded["messages"] if isinstance(loaded, dict) else loaded
        messages = with_absolute_media(listed, path.parent.resolve())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(path, f"is not a conversation ({type(error).__name__}: {error})") from error
    if messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise DataError(path, "has no turn to answer")
    return messages
