"""The command line as a module: `python -m mtmamba_jax COMMAND`, the same as `mtmamba COMMAND`."""

import sys

from mtmamba_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
