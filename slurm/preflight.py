"""First step of a job, once a node: preflight.py RUN_DIR CONFIG ATTEMPT (megatron_glmv/launch/preflight.py)."""

import sys

from megatron_glmv.launch.preflight import main

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
