"""One seed for a run. Weights do not depend on the layout (model/initialise.py); there is no dropout to draw for."""

from __future__ import annotations

import random

import numpy as np
import torch
from megatron.core import tensor_parallel


def seed_all(seed: int) -> None:
    """Seeds Python, numpy, torch and megatron-core's tracker of tensor-parallel and expert-parallel streams."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
