"""Text only: recall from a list, sums, and order of names by comparisons."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.domains.objects import NAMES
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium

PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
PEOPLE = ("ann", "ben", "cy", "dot", "eve", "fay", "gus", "hal")
LISTED = (2, 3, 5, 6)
TERMS = (2, 2, 3, 5)
COMPARED = (2, 3, 4, 6)
MOST = (9, 19, 29, 49)
"""Largest sum, by tier."""


@dataclass(frozen=True)
class Page:
    """Nothing is drawn."""

    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    media: tuple[Medium, ...] = ()


def draw_list(d: Draw) -> Page:
    return Page(words=tuple(d.some(NAMES, LISTED[d.tier])))


def ask_place(page: Page, d: Draw) -> Ask:
    at = d.between(0, len(page.words) - 1)
    steps = [f"{PLACES[i]} is {word}" for i, word in enumerate(page.words[: at + 1])]
    phrasings = ("{listed}: which is the {place}?", "name the {place} of {listed}")
    return d.ask(
        "text_place",
        phrasings,
        page.words[at],
        steps,
        choices=NAMES,
        work=len(page.words),
        listed=" ".join(page.words),
        place=PLACES[at],
    )


def ask_after(page: Page, d: Draw) -> Ask:
    at = d.between(1, len(page.words) - 1)
    steps = [f"{page.words[at - 1]} is the {PLACES[at - 1]}", f"the {PLACES[at]} is {page.words[at]}"]
    phrasings = ("{listed}: what comes after {word}?", "in {listed}, name what follows {word}")
    others = tuple(name for name in NAMES if name != page.words[at - 1])
    return d.ask(
        "text_after",
        phrasings,
        page.words[at],
        steps,
        choices=others,
        work=len(page.words),
        listed=" ".join(page.words),
        word=page.words[at - 1],
    )


def draw_sum(d: Draw) -> Page:
    """The sum is uniform; the terms split it."""
    total, terms = d.between(0, MOST[d.tier]), TERMS[d.tier]
    cuts = sorted(d.between(0, total) for _ in range(terms - 1))
    return Page(numbers=tuple(b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)))


def ask_sum(page: Page, d: Draw) -> Ask:
    steps, total = [], page.numbers[0]
    for term in page.numbers[1:]:
        steps.append(f"{total} + {term} = {total + term}")
        total += term
    sums, terms = range(MOST[d.tier] + 1), " + ".join(map(str, page.numbers))
    return d.ask(
        "text_sum",
        ("what is {terms}?", "add up {terms}"),
        total,
        steps,
        choices=sums,
        work=len(page.numbers),
        terms=terms,
    )


def draw_order(d: Draw) -> Page:
    """From the oldest to the youngest."""
    return Page(words=tuple(d.some(PEOPLE, COMPARED[d.tier])))


def ask_oldest(page: Page, d: Draw) -> Ask:
    """Comparisons of neighbours, in any order: the end that is asked for is drawn first."""
    oldest = d.pick((True, False))
    facts = [
        f"{a} is older than {b}" if d.pick((True, False)) else f"{b} is younger than {a}"
        for a, b in zip(page.words, page.words[1:], strict=False)
    ]
    said = page.words[0] if oldest else page.words[-1]
    steps = [" is older than ".join(page.words), f"the {'oldest' if oldest else 'youngest'} is {said}"]
    phrasings = ("{facts}. who is the {what}?", "{facts}. name the {what}")
    text = ", ".join(d.some(facts, len(facts)))
    names = sorted(page.words)
    return d.ask(
        "text_order",
        phrasings,
        said,
        steps,
        choices=names,
        work=len(page.words),
        facts=text,
        what="oldest" if oldest else "youngest",
    )


TEXT = Domain(
    "text",
    (
        Kind("list", draw_list, (ask_place, ask_after)),
        Kind("sum", draw_sum, (ask_sum,)),
        Kind("order", draw_order, (ask_oldest,)),
    ),
)
