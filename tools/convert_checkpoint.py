"""`glmv convert` as a script, for jobs that run files: convert_checkpoint.py import --hf DIR --out DIR."""

import sys

from megatron_glmv.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["convert"]
    main()
