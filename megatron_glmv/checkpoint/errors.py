"""What can go wrong with a checkpoint, by what the caller can do about it."""

from __future__ import annotations

from typing import ClassVar

from megatron_glmv.resilience.exit_codes import ExitCode


class CheckpointError(RuntimeError):
    """Base of all checkpoint errors. `exit_code` is what a command ends with (resilience/exit_codes.py)."""

    exit_code: ClassVar[int] = 1


class SaveError(CheckpointError):
    """A checkpoint could not be written. Nothing was committed, and earlier checkpoints are as they were."""


class ReadError(CheckpointError):
    """One checkpoint cannot be read, or is not what its manifest says."""

    exit_code: ClassVar[int] = ExitCode.CORRUPT


class CorruptCheckpointError(ReadError):
    """Checkpoints exist and none of them is sound: a fresh start would silently throw the run away."""


class MismatchError(CheckpointError):
    """The checkpoint is sound, but belongs to another model or tokenizer."""

    exit_code: ClassVar[int] = ExitCode.CONFIG
