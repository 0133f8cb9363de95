"""The rows of the paper's Tables 2 to 6 on NYUDv2, one variant per row (section 4.3).

python launch.py tables                                             cost of each variant
python launch.py sweep --config=ablations --print                   commands that train all variants
python launch.py train --config=ablations:stm_2 --config.model.dtype=bfloat16

The single-task row takes four runs, one per task. Everything else is as in configs/nyudv2.py,
including the encoder's weights:
--config.init.encoder=hf:microsoft/swin-large-patch4-window12-384-in22k
(for Swin-Tiny, Small and Base use their own). These variants have not been trained here because the
dataset is not available; the paper's scores are in mtmamba_jax/paper/published.py.
"""

from ml_collections import ConfigDict

from mtmamba_jax.configs import nyudv2
from mtmamba_jax.tasks.table import NYUDV2

DECODERS = {  # variant -> key of models.mtmamba.MODELS
    "multi_task": "swin_decoder",
    "stm_1": "stm_1",
    "stm_2": "stm_2",
    "stm_3": "stm_3",
    "mtmamba": "mtmamba",
    "attention_mfe": "attention_mfe",
    "attention_gate": "attention_gate",
    "gate_0": "gate_0",
    "gate_1": "gate_1",
}
SINGLE_TASK = {f"single_task_{task.name}": task.name for task in NYUDV2}
ENCODERS = ("swin_tiny", "swin_small", "swin_base")
VARIANTS = (*SINGLE_TASK, *DECODERS, *ENCODERS)


def get_config(variant: str) -> ConfigDict:
    """Returns the configuration for one of `VARIANTS`."""
    config = nyudv2.get_config()
    choose(config, variant)
    return config


def choose(config: ConfigDict, variant: str) -> None:
    """Changes a configuration of MTMamba to one of `VARIANTS`."""
    if variant in SINGLE_TASK:
        config.model.name = "swin_decoder"
        config.tasks.names = (SINGLE_TASK[variant],)
    elif variant in DECODERS:
        config.model.name = DECODERS[variant]
    else:
        config.model.encoder = variant
