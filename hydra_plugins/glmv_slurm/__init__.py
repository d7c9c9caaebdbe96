"""`hydra/launcher=glmv_slurm`. Hydra takes plugins from this namespace only."""
