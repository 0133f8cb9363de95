"""Trains, evaluates and predicts: `python launch.py --help`."""

import sys

try:
    from mtmamba_jax.cli.main import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}. Install the package first: pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
