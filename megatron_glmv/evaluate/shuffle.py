"""The control experiment: the same questions about another sample's pictures. What is right then was not seen."""

from __future__ import annotations

import copy
import random
from collections import Counter
from dataclasses import replace

from megatron_glmv.data.conversation import media_parts
from megatron_glmv.evaluate.dataset import Question

Media = tuple[tuple[str, str], ...]


def shuffle_media(questions: list[Question], seed: int) -> tuple[list[Question], list[str]]:
    """Exchanges media between questions of the same task that show the same kinds of media.

    No question keeps what it showed, also where several ask about one picture. Texts, answers and the order of the
    questions stay. Returns the questions and the ids of those left out: a question without media has nothing to
    exchange, and where more than half of a group shows the same media there is no such exchange.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place, question in enumerate(questions):
        groups.setdefault((question.task, tuple(kind for kind, _ in question.media)), []).append(place)
    given: dict[int, Media] = {}
    for name, places in sorted(groups.items()):
        if not name[1]:
            continue
        shown = [questions[place].media for place in places]
        exchanged = derange(shown, random.Random(f"{seed} {name}"))
        given.update(zip(places, exchanged or [], strict=False))
    shuffled = [_with_media(question, given[place]) for place, question in enumerate(questions) if place in given]
    return shuffled, [question.id for place, question in enumerate(questions) if place not in given]


def derange(items: list[Media], rng: random.Random) -> list[Media] | None:
    """A permutation of `items` in which no place holds an item equal to its own; None where there is none.

    Equal items are laid side by side, in random order of the distinct ones, and everything moves by the size of the
    largest block: that leaves every block exactly when no block is more than half of the whole.
    """
    counts = Counter(items)
    most = max(counts.values())
    if 2 * most > len(items):
        return None
    distinct = sorted(counts)
    rng.shuffle(distinct)
    rank = {item: i for i, item in enumerate(distinct)}
    order = list(range(len(items)))
    rng.shuffle(order)
    order.sort(key=lambda i: rank[items[i]])
    result = list(items)
    for position, place in enumerate(order):
        result[place] = items[order[(position + most) % len(order)]]
    return result


def _with_media(question: Question, media: Media) -> Question:
    messages = copy.deepcopy(question.messages)
    for part, (kind, path) in zip(media_parts({"messages": messages}), media, strict=True):
        part[kind] = path
    return replace(question, messages=messages)
