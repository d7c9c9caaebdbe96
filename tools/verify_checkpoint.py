"""`glmv convert verify` as a script, for jobs that run files: verify_checkpoint.py A B [--json]."""

import sys

from megatron_glmv.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["convert", "verify"]
    main()
