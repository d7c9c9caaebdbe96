"""Which verifier judges which domain."""

from __future__ import annotations

import difflib

from megatron_glmv.rl.rewards import (
    chart,
    choice,
    coding,
    counting,
    document,
    exact,
    geo,
    grounding,
    gui_action,
    gui_grounding,
    instructions,
    logic,
    mathematics,
    ocr,
    open_ended,
    page,
    science,
    ui_to_code,
    vqa,
    web_agent,
)
from megatron_glmv.rl.rewards.types import Verifier

VERIFIERS: dict[str, Verifier] = {
    verifier.name: verifier
    for verifier in (
        exact.VERIFIER,
        mathematics.VERIFIER,
        science.PHYSICS,
        science.CHEMISTRY,
        chart.VERIFIER,
        ocr.VERIFIER,
        vqa.VERIFIER,
        counting.VERIFIER,
        grounding.VERIFIER,
        vqa.SPATIAL,
        gui_action.VERIFIER,
        gui_grounding.VERIFIER,
        page.VERIFIER,
        vqa.VIDEO,
        document.VERIFIER,
        geo.VERIFIER,
        logic.VERIFIER,
        choice.VERIFIER,
        coding.VERIFIER,
        instructions.VERIFIER,
        open_ended.VERIFIER,
        web_agent.VERIFIER,
        ui_to_code.VERIFIER,
    )
}
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
    "chart": ("chart_qa", "charts"),
    "ocr": ("text_recognition",),
    "vqa": ("general_vqa", "visual_qa", "gui_qa"),
    "grounding": ("visual_grounding", "detection", "referring"),
    "spatial": ("spatial_reasoning",),
    "gui_action": ("gui", "gui_agent", "androidworld", "osworld", "webvoyager", "action"),
    "html": ("web_page",),
    "ui_to_code": ("design2code", "screenshot_to_code"),
    "web_agent": ("mind2web", "web_navigation", "web_task"),
    "gui_grounding": ("screen_grounding",),
    "video_qa": ("video", "video_understanding"),
    "long_document": ("document", "document_qa", "long_doc", "doc"),
    "geo": ("geoguess", "geo_guess", "geoquest", "geolocation"),
    "logic": ("logical_reasoning", "puzzle"),
    "coding": ("code", "programming"),
    "instruction_following": ("instructions", "ifeval", "instruction"),
    "open_ended": ("chat", "rlhf", "non_verifiable"),
    "multiple_choice": ("mcq", "choice", "multi_choice"),
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
