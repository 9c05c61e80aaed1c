"""`python -m timebox` is the `timebox` command."""

import sys

from timebox.cli import main

sys.exit(main())
