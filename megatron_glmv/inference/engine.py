"""Answers from a model in this process: prompts of equal length together, one prefill, then token by token.

Shapes: B prompts in a batch, T tokens of a prompt, N patches, M visual tokens, H hidden, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.inference.contexts import StaticInferenceContext

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.inference.completion import FAILED, LENGTH, STOP, Completion
from megatron_glmv.inference.features import Features
from megatron_glmv.inference.media import MediaFiles
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.inference.sampling import GREEDY, Sampler, Sampling
from megatron_glmv.model.fusion import fuse

BATCH_TOKENS = 1 << 18
"""Prompt and answer tokens of one batch: bounds the key-value cache and the pixels decoded together (1.2 GB)."""


class Engine:
    """Generates with a GLMV that lies whole on one device."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, files: MediaFiles, stop_tokens: Sequence[str], device: torch.device
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = device
        self.features = Features(model.vision, files, device)
        self.stop_ids = frozenset(tokenizer.special(name) for name in stop_tokens if tokenizer.has(name))

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, sampling: Sampling = GREEDY, *, batch_size: int = 64
    ) -> list[Completion]:
        """One completion for each prompt, in their order."""
        made = dict(self.stream(prompts, max_new_tokens, sampling, batch_size=batch_size))
        return [made[place] for place in range(len(prompts))]

    def stream(
        self, prompts: Sequence[Prompt], max_new_tokens: int, sampling: Sampling = GREEDY, *, batch_size: int = 64
    ) -> Iterator[tuple[int, Completion]]:
        """(place, completion) as batches finish: prompts of equal length make a batch.

        An answer does not depend on the batch it was made in: sampling draws from the seed and the prompt's place.
        """
        for places in equal_lengths([len(prompt) for prompt in prompts], max_new_tokens, batch_size):
            features = self.features.of([medium for place in places for medium in prompts[place].media])
            usable = []
            for place in places:
                errors = [e for m in prompts[place].media if isinstance(e := features[m.key], SampleError)]
                if errors:
                    yield place, Completion((), "", FAILED, str(errors[0]))
                else:
                    usable.append(place)
            if usable:
                batch = [prompts[place] for place in usable]
                yield from zip(usable, self._answer(batch, usable, max_new_tokens, sampling), strict=True)

    @torch.no_grad()
    def logits(self, prompt: Prompt, answer: Sequence[int] = ()) -> torch.Tensor:
        """[T, W] fp32 over a prompt and the beginning of an answer, in one pass without a cache.

        Raises SampleError where a medium does not decode.
        """
        ids = torch.cat([prompt.input_ids, torch.tensor(answer, dtype=torch.int64)])[None].to(self.device)
        positions = continued(prompt.position_ids, len(answer))[:, None].to(self.device)
        logits: torch.Tensor = self.model(ids, positions, embeddings=self._embed([prompt], ids))
        return logits[0].float()

    @torch.no_grad()
    def _answer(self, prompts: list[Prompt], numbers: list[int], most: int, sampling: Sampling) -> list[Completion]:
        """Prompts of equal length; `numbers` seed their samplers."""
        length = len(prompts[0])
        sampler = Sampler(sampling, numbers)
        positions = torch.stack([continued(p.position_ids, most) for p in prompts], dim=1).to(self.device)
        ids = torch.stack([p.input_ids for p in prompts]).to(self.device)
        context = StaticInferenceContext(len(prompts), length + most)
        said: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        rows = list(range(len(prompts)))  # the prompt of each row of the batch
        embeddings = self._embed(prompts, ids)
        for count in range(most):
            # Keys are cached before their rotation, so attention asks for the positions of everything so far.
            seen = positions[:, :, : length + count]
            logits = self.model(ids, seen, embeddings=embeddings, inference_context=context)[:, -1].float()
            context.increment_sequence_len_offset(ids.shape[1])
            context.enable_decode_mode()
            tokens = sampler.pick(logits, rows)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                ended[row] = ended[row] or token in self.stop_ids
                if not ended[row]:
                    said[row].append(token)
            alive = [i for i, row in enumerate(rows) if not ended[row]]
            if not alive:
                break
            if 2 * len(alive) <= len(rows):  # few long answers do not pay for many short ones
                rows, tokens, positions = [rows[i] for i in alive], tokens[alive], positions[:, alive]
                _keep_rows(context, alive)
            ids = tokens[:, None].to(self.device)
            embeddings = self.model.language.embedding(input_ids=ids, position_ids=None)
        return [
            Completion(tuple(ids), self.tokenizer.decode(ids).strip(), STOP if end else LENGTH)
            for ids, end in zip(said, ended, strict=True)
        ]

    def _embed(self, prompts: list[Prompt], ids: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [T, B, H], visual features in the places of their placeholders."""
        embeddings: torch.Tensor = self.model.language.embedding(input_ids=ids, position_ids=None)
        media = [medium for prompt in prompts for medium in prompt.media]
        if not media:
            return embeddings
        features = self.features.of(media)
        rows = []
        for medium in media:
            encoded = features[medium.key]
            if isinstance(encoded, SampleError):
                raise encoded
            rows.append(encoded)
        places = torch.cat([i * ids.shape[1] + prompt.visual_positions for i, prompt in enumerate(prompts)])
        return fuse(embeddings, torch.cat(rows), places.to(self.device))


def equal_lengths(lengths: Sequence[int], more: int, batch_size: int) -> Iterator[list[int]]:
    """Places of equal length, at most `batch_size` and BATCH_TOKENS tokens of them, `more` generated ones included."""
    by_length: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        by_length.setdefault(length, []).append(place)
    for length, places in sorted(by_length.items()):
        size = max(1, min(batch_size, BATCH_TOKENS // (length + more)))
        yield from (places[i : i + size] for i in range(0, len(places), size))


def continued(positions: torch.Tensor, more: int) -> torch.Tensor:
    """[3, T] -> [3, T + more]: text goes on from the highest of a prompt's time, height and width positions."""
    following = positions.max() + 1 + torch.arange(more)
    return torch.cat([positions, following.expand(3, more)], dim=1)


def _keep_rows(context: StaticInferenceContext, rows: list[int]) -> None:
    """Only these rows of the batch go on."""
    for layer, (keys, values) in context.key_value_memory_dict.items():
        context.key_value_memory_dict[layer] = (keys[:, rows], values[:, rows])
    context.max_batch_size = len(rows)
