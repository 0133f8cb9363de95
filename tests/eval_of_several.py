"""One of several processes that evaluate a pixel model: PORT COUNT INDEX ARGUMENT..."""

import sys

if __name__ == "__main__":
    from mtmamba_jax.checkpoints import load
    from mtmamba_jax.cli.main import main
    from tests import tiny  # noqa: F401 (registers its encoder)
    from tests.pixel_model import build_pixel_model

    port, count, index, *arguments = sys.argv[1:]
    load.abstract_build = build_pixel_model
    flags = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"]
    sys.exit(main(["eval", *arguments, *flags]))
