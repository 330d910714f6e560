"""`python -m edge_runtime.cli`: the command where the script of the installation is not on the path."""

import sys

from edge_runtime.cli import main

sys.exit(main())
