"""Declares every configuration key: its default (the paper's recipe), valid values and meaning.

Other configurations start from `get_config()` and change what differs; they cannot add keys. On the
command line, select one with `--config=NAME[:VARIANT]` or `--config=PATH.py[:VARIANT]`, and set
single keys with `--config.key=value`.
"""

import itertools
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from mtmamba_jax.tasks.table import TASK_SETS


class Key(NamedTuple):
    """A configuration key.

    Attributes:
      name: Dotted name. A last part TASK means one key for each task.
      default: Default value, or the type of a key that is None unless it is set.
      valid: Valid values, in one of the forms of `mtmamba_jax.config.ranges`: an interval of
        numbers, a tuple of names, or words.
      meaning: Explanation of the value, with its unit.
    """

    name: str
    default: Any
    valid: str | tuple[str, ...]
    meaning: str


# fmt: off
KEYS = tuple(map(Key._make, (
    ("seed", 0, "[0, 2**31)",
     "seed of the weights, the order of the data, augmentation and drop path"),
    ("on_nonfinite", "stop", ("stop", "skip"),
     "what to do if a loss or gradient is NaN or infinite: stop, or skip the update, at most 100 "
     "times in a row (see training/nonfinite.py)"),

    # Initial weights; random if both are None. A run that resumes from its own checkpoints ignores
    # both.
    ("init.run", str, "a path",
     "work directory of a run with the same model and tasks, or a file with the official code's "
     "weights (.safetensors, .pth, .pth.tar, .pt, .bin, .ckpt; hf:REPO)"),
    ("init.encoder", str, "a path",
     "the same for the encoder alone, or a file with a Swin encoder of Microsoft, mmsegmentation, "
     "timm or Hugging Face; takes precedence over init.run"),

    # A mesh of data x fsdp devices, each of which processes a part of the batch.
    ("mesh.data", -1, "-1 or in [1, 2**31)",
     "replicas of the weights; -1 uses as many devices as possible that divide the batch"),
    ("mesh.fsdp", 1, "[1, 2**31)",
     "devices over which each replica and its optimizer state are sharded"),

    ("tasks.set", "nyudv2", "name in tasks.table.TASK_SETS", "tasks to choose from"),
    ("tasks.names", (), "distinct names", "tasks of the set to train; () trains all"),
    ("tasks.classes", (), "distinct names", "names of semseg's classes; () uses the set's"),
    ("tasks.baselines.TASK", float, "(0, 1e6]",
     "baseline score for delta_m, in the unit that the tables print, for every task of the run or "
     "for none; without them, the scores of the best constant predictions on the test set"),

    ("model.name", "mtmamba", "name in models.mtmamba.MODELS", "architecture of the decoder"),
    ("model.encoder", "swin_large", "name in models.swin.SWIN_SIZES", "size of the encoder"),
    ("model.expansion", 2, "[1, 1024]", "inner channels of a Mamba block / its width (alpha)"),
    ("model.state_size", 16, "[1, 65536]", "SSM states per channel"),
    ("model.encoder_drop_path_rate", 0.1, "[0, 1)", "rate of the encoder's last block"),
    ("model.decoder_drop_path_rate", 0.2, "[0, 1)", "rate of the decoder's first block"),
    ("model.dtype", "float32", "name in models.mtmamba.DTYPES", "compute dtype"),
    ("model.remat", "none", "name in models.layers.REMAT_POLICIES",
     "rematerialization: none, dots (keeps matrix products) or full"),
    ("model.scan_implementation", str, "name in kernels.ss2d.IMPLEMENTATIONS",
     "backend of the scan, used without a fallback; None chooses by platform"),

    ("data.name", "synthetic", "name in data_pipelines.sources.SOURCES", "source of examples"),
    ("data.dir", str, "a path",
     "folder of your own data, or the --data_dir of `prepare`; None uses TFDS's default"),
    ("data.size", (448, 576), "two integers in [1, 65536]",
     "height and width of training crops and evaluation images"),
    ("data.label_scale", 1, "[1, 64]", "height and width of labels relative to images"),
    ("data.train_examples", 795, "[1, 2**31)", "synthetic: size of the training set"),
    ("data.test_examples", 654, "[1, 2**31)", "synthetic: size of the test set"),
    ("data.num_workers", 0, "[0, 1024]", "worker processes; 0 reads in threads of this process"),
    ("data.cache_gib", 0.0, "[0, 65536]",
     "memory for caching raw examples, for the training set and the test set each, in each worker "
     "process"),

    # See data_pipelines.transforms.
    ("augment.scale", (0.5, 2.0), "two ascending numbers in [0.01, 10]",
     "range of the random zoom"),
    ("augment.max_class_share", 0.75, "[0, 1]", "crops where one class covers more are redrawn"),
    ("augment.crop_tries", 10, "[1, 1000]", "largest number of crops drawn"),
    ("augment.flip_probability", 0.5, "[0, 1]", "probability of a horizontal flip"),
    ("augment.brightness", 32.0, "[0, 255]", "largest shift of the values 0 to 255"),
    ("augment.contrast", (0.5, 1.5), "two ascending numbers in (0, 10]",
     "range of the factor on the values"),
    ("augment.saturation", (0.5, 1.5), "two ascending numbers in (0, 10]",
     "range of the factor on HSV saturation"),
    ("augment.hue", 18, "[0, 90]", "largest shift, in units of 2 degrees"),
    ("augment.jitter_probability", 0.5, "[0, 1]",
     "probability of each of the four colour changes"),

    ("loss.scheme", "log", "name in tasks.losses.SCHEMES", "how task losses are combined"),
    ("loss.reduction", "image", "name in tasks.losses.REDUCTIONS",
     "what losses are averaged over: each image or the batch"),
    ("loss.weights.TASK", 1.0, "[0, 1e6]", "weight of the task's loss"),

    # AdamW with polynomial decay, learning_rate * (1 - step/steps)^power.
    ("optimizer.learning_rate", 1e-4, "(0, 1]", "largest learning rate"),
    ("optimizer.warmup_steps", 0, "[0, 2**31)", "steps of linear warmup"),
    ("optimizer.power", 0.9, "[0, 100]", "exponent of the decay"),
    ("optimizer.weight_decay", 1e-5, "[0, 100]", "decay of all weights, times the learning rate"),
    ("optimizer.beta_1", 0.9, "[0, 1)", "decay of the gradient's running mean"),
    ("optimizer.beta_2", 0.999, "[0, 1)", "decay of the squared gradient's running mean"),
    ("optimizer.epsilon", 1e-8, "(0, 1]", "added to the root of that mean, which divides"),

    ("train.steps", 50_000, "[1, 2**31)", "optimizer steps of the whole run"),
    ("train.batch_size", 8, "[1, 65536]", "global, over all devices"),
    ("train.microbatches", 1, "[1, 2**31)",
     "gradient accumulation: parts of a batch processed in turn"),
    ("train.log_every", 50, "[1, 2**31)", "steps"),
    ("train.eval_every", 1_000, "[1, 2**31)", "steps"),
    ("train.checkpoint_every", 1_000, "[1, 2**31)", "steps"),
    ("train.keep_checkpoints", 2, "[1, 2**31)", "latest checkpoints to keep, besides the best"),

    ("eval.batch_size", 8, "[1, 65536]", "global, over all devices"),
    ("eval.panels", 6, "[0, 2**31)", "test images drawn with predictions, labels and errors"),
)))
"""Every key."""
# fmt: on


def get_config() -> ConfigDict:
    """Returns the defaults: MTMamba with Swin-Large, 50,000 steps of batch 8 (section 4.1)."""
    tasks = dict.fromkeys(task.name for task in itertools.chain(*TASK_SETS.values()))
    config = ConfigDict()
    for key in KEYS:
        *sections, last = key.name.split(".")
        parent = config
        for section in sections:
            if section not in parent:
                parent[section] = ConfigDict()
            parent = parent[section]
        for name in tasks if last == "TASK" else (last,):
            placeholder = isinstance(key.default, type)
            parent[name] = config_dict.placeholder(key.default) if placeholder else key.default
    return config


def to_plus(config: ConfigDict) -> None:
    """Changes a configuration to MTMamba++ (Lin et al., TPAMI 2025), as on PASCAL-Context."""
    config.model.name = "mtmamba_plus"
    config.optimizer.learning_rate = 8e-5
    config.optimizer.weight_decay = 1e-6
    config.train.steps = 40_000
