"""One of several processes that train a pixel model: PORT COUNT INDEX WORKDIR [key=value ...]."""

import sys

if __name__ == "__main__":
    from mtmamba_jax.devices.processes import join

    port, count, index, workdir, *overrides = sys.argv[1:]
    if int(count) > 1:
        join(f"localhost:{port}", int(count), int(index))

    from mtmamba_jax.checkpoints import load
    from mtmamba_jax.training import state
    from mtmamba_jax.training.stopping import StoppedError
    from mtmamba_jax.training.train import train
    from tests.pixel_model import build_pixel_model
    from tests.tiny import tiny_config

    state.build = build_pixel_model
    state.abstract_build = load.abstract_build = build_pixel_model
    settings = dict(pair.split("=", 1) for pair in overrides)
    config = tiny_config(**{key.replace(".", "__"): value for key, value in settings.items()})
    try:
        train(config, workdir)
    except StoppedError as stopped:
        print(stopped, flush=True)
