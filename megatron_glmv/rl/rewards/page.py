"""Code of a rendered page: HTML whose tree is the reference's (tags, styles, texts, order).

Blanks between tags, the order inside a style and `<hr/>` for `<hr>` do not matter. `answer`: HTML of the subset that
`data/synthetic/domains/page.py` renders; a code fence around the response is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.data.synthetic.domains.markup import same
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, wrong
from megatron_glmv.rl.rewards.values import unfence


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    return right("the same page") if same(unfence(final), str(answer)) else wrong("another page")


VERIFIER = Verifier("html", check, isolated=True)
