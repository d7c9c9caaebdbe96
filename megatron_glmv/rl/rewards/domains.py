"""Which verifier judges which domain."""

from __future__ import annotations

import difflib

from megatron_glmv.rl.rewards import exact, mathematics
from megatron_glmv.rl.rewards.types import Verifier

VERIFIERS: dict[str, Verifier] = {v.name: v for v in (exact.VERIFIER, mathematics.VERIFIER)}
"""Every verifier by its own name, which is its domain's, too."""

ALIASES: dict[str, tuple[str, ...]] = {
    "exact": (
        *(
            "demo",
            "image",
            "text",
            "colour",
            "shape",
            "position",
            "count",
            "digit",
            "sum",
            "category",
            "recall",
            "order",
        ),
        *("chart_highest", "chart_lowest", "chart_value", "light_first", "light_last", "cycle_first", "cycle_next"),
        *("video_colour", "video_shape", "video_start", "video_end", "direction"),
    ),
    "math": ("mathematics", "stem", "geometry"),
}
"""Other names of a domain, by verifier. Those of `exact` are the project's synthetic tasks."""

DOMAINS: dict[str, Verifier] = {
    **VERIFIERS,
    **{alias: VERIFIERS[name] for name, aliases in ALIASES.items() for alias in aliases},
}


def find(domain: str) -> Verifier | None:
    """The verifier of a domain; case, blanks and hyphens don't matter."""
    return DOMAINS.get(_plain(domain))


def nearest(domain: str) -> str:
    """The known domain that is spelled most like this one."""
    return next(iter(difflib.get_close_matches(_plain(domain)[:64], DOMAINS, n=1, cutoff=0.0)))


def _plain(domain: str) -> str:
    return "_".join(domain.casefold().replace("-", " ").replace("_", " ").replace("/", " ").split())
