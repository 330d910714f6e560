"""`python -m builder` is `nnf-build`; torchrun starts it so: ``torchrun --nproc-per-node 2 -m builder train ...``."""

import sys

from builder.cli import main

if __name__ == "__main__":
    sys.exit(main())
