"""What the fork server of the tests imports once."""

import importlib

from megatron_glmv.platform.device import select

select("cpu").install()

for name in ("torch._dynamo", "megatron.core.models.gpt", "megatron_glmv.stages.pretrain"):
    importlib.import_module(name)
