"""Imported once by the server from which local ranks fork: what costs seconds to import, with the platform in place.

torch._dynamo is imported by the first optimizer of every process: 1.6 s.
"""

import importlib

from megatron_glmv.platform.device import select

select("auto").install()  # before the first import of megatron.core

for name in ("megatron.core.models.gpt", "torch._dynamo", "megatron_glmv.stages.pretrain"):
    importlib.import_module(name)
