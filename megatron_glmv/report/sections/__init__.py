"""The parts of the report, in the order of the page."""

from __future__ import annotations

from megatron_glmv.report.section import Section
from megatron_glmv.report.sections.accuracy import Accuracy
from megatron_glmv.report.sections.config import ConfigSection
from megatron_glmv.report.sections.curves import Curves
from megatron_glmv.report.sections.rlcs import Reinforcement
from megatron_glmv.report.sections.samples import Samples
from megatron_glmv.report.sections.summary import Summary
from megatron_glmv.report.sections.throughput import Throughput

SECTIONS: tuple[Section, ...] = (
    Summary(),
    Accuracy(),
    Curves(),
    Reinforcement(),
    Throughput(),
    Samples(),
    ConfigSection(),
)
