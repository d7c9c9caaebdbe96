"""Imported once by the server from which local ranks fork: what costs seconds to import, with the platform in place."""

from megatron_glmv.platform.device import select

select("auto").install()

import megatron.core.models.gpt
import torch._dynamo
import torch.optim

import megatron_glmv.stages.pretrain  # noqa: F401
