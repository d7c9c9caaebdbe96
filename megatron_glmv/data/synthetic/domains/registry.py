"""Every domain by its name, which is the name of its verifier."""

from __future__ import annotations

from megatron_glmv.data.synthetic.domains.chart import CHART
from megatron_glmv.data.synthetic.domains.counting import COUNTING
from megatron_glmv.data.synthetic.domains.document import DOCUMENT
from megatron_glmv.data.synthetic.domains.geometry import MATH
from megatron_glmv.data.synthetic.domains.grounding import GROUNDING
from megatron_glmv.data.synthetic.domains.gui import GUI
from megatron_glmv.data.synthetic.domains.html import HTML
from megatron_glmv.data.synthetic.domains.ocr import OCR
from megatron_glmv.data.synthetic.domains.physics import PHYSICS
from megatron_glmv.data.synthetic.domains.problem import Domain
from megatron_glmv.data.synthetic.domains.spatial import SPATIAL
from megatron_glmv.data.synthetic.domains.text import TEXT
from megatron_glmv.data.synthetic.domains.video import VIDEO_DOMAIN

DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        MATH,
        PHYSICS,
        CHART,
        OCR,
        COUNTING,
        SPATIAL,
        GROUNDING,
        GUI,
        HTML,
        DOCUMENT,
        VIDEO_DOMAIN,
        TEXT,
    )
}
