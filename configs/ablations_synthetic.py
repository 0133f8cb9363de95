"""The rows of the paper's Tables 2 to 5 with a small model on synthetic rooms, one variant per row.

python launch.py sweep --config=ablations_synthetic --seeds=0,1,2
python launch.py tables --runs=runs/ablations_synthetic

Everything but the decoder is as in configs/synthetic.py. The variants are those of
configs/ablations.py without the encoders.
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import ablations, synthetic

VARIANTS = (*ablations.SINGLE_TASK, *ablations.DECODERS)


def get_config(variant: str) -> ConfigDict:
    """Returns the configuration for one of `VARIANTS`."""
    config = synthetic.get_config()
    ablations.choose(config, variant)
    return config
