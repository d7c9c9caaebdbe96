"""`python -m megatron_glmv.cli`, for launchers that start Python modules (torchrun -m)."""

from megatron_glmv.cli import main

main()
