"""Trains, evaluates and predicts: `python launch.py --help`."""

import sys

try:
    import mtmamba_jax.kernels  # a folder of this name only exists once the package is installed
    from mtmamba_jax.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}. Install the package first: pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
