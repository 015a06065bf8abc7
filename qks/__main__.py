"""`python -m qks` is the command `qks`."""

import sys

from qks.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
