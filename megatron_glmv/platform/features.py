"""What of the optional GPU software works here, asked without harming this process."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from importlib import metadata

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.platform.device import Platform

PROBE_TIMEOUT_S = 120


@lru_cache(maxsize=64)
def importable(module: str) -> str:
    """Empty if `import module` works, else the last line of its error. In a process of its own: a half-installed
    Transformer Engine raises RuntimeError, not ImportError, and breaks `import megatron.core` with it."""
    command = [sys.executable, "-c", f"import torch, importlib; importlib.import_module({module!r})"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"the import did not end within {PROBE_TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the import ended with exit code {done.returncode}"


def installed(distribution: str) -> str:
    """Version of an installed distribution, or empty."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def te_usable(platform: Platform) -> bool:
    """Transformer Engine needs a GPU for every kernel, and imports only where it is whole."""
    return (
        platform.name == "cuda"
        and bool(installed("transformer_engine"))
        and not importable("transformer_engine.pytorch")
    )


def layer_backend(wanted: str, platform: Platform, *, emulate_fp8: bool = False) -> str:
    """Layer specs to use: `wanted`, or for auto te where it is usable and torch elsewhere (and for emulated FP8, which
    is in the torch layers). Raises ConfigError."""
    if wanted == "auto":
        return "te" if not emulate_fp8 and te_usable(platform) else "torch"
    if wanted == "te" and not te_usable(platform):
        raise ConfigError(
            "backend", wanted, "Transformer Engine is not usable here (see `glmv doctor`)", fix="backend=torch"
        )
    return wanted
