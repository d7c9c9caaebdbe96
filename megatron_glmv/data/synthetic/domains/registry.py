"""Every domain by its name, which is the name of its verifier."""

from __future__ import annotations

from megatron_glmv.data.synthetic.domains.counting import COUNTING
from megatron_glmv.data.synthetic.domains.grounding import GROUNDING
from megatron_glmv.data.synthetic.domains.ocr import OCR
from megatron_glmv.data.synthetic.domains.problem import Domain
from megatron_glmv.data.synthetic.domains.spatial import SPATIAL
from megatron_glmv.data.synthetic.domains.text import TEXT
from megatron_glmv.data.synthetic.domains.video import VIDEO_DOMAIN

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (COUNTING, SPATIAL, GROUNDING, OCR, VIDEO_DOMAIN, TEXT)}
