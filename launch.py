"""Trains, evaluates and predicts: `python launch.py --help`."""

import sys

if __name__ == "__main__":
    try:
        from mtmamba_jax.cli.main import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}. Install the package first: pip install -e .")
