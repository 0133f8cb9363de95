"""Declares every configuration key with its meaning and its default, the paper's recipe.

Other configurations start from `get_config()` and change what differs; they cannot add keys. On the
command line, select one with `--config=NAME[:VARIANT]` or `--config=PATH.py[:VARIANT]`, and set
single keys with `--config.key=value`.
"""

import itertools

from ml_collections import ConfigDict, config_dict

from mtmamba_jax.tasks.table import TASK_SETS


def get_config() -> ConfigDict:
    """Returns the defaults: MTMamba with Swin-Large, 50,000 steps of batch 8 (section 4.1)."""
    config = ConfigDict()
    config.seed = 0  # seed of the weights, the order of the data, augmentation and drop path

    # What to do if a loss or gradient is NaN or infinite: "stop", or "skip" the update, at
    # most 100 times in a row (see training/nonfinite.py).
    config.on_nonfinite = "stop"

    config.init = ConfigDict()  # initial weights; random if both are None
    # Work directory of a run with the same model and tasks, or a file with the official code's
    # weights (.safetensors, .pth, .pth.tar, .pt, .bin; hf:REPO).
    config.init.run = config_dict.placeholder(str)
    # The same for the encoder alone, or a file with a Swin encoder of Microsoft, mmsegmentation,
    # timm or Hugging Face. Takes precedence over init.run. A run that resumes from its own
    # checkpoints ignores both.
    config.init.encoder = config_dict.placeholder(str)

    config.mesh = ConfigDict()  # data x fsdp devices, each of which processes a part of the batch
    # Number of replicas of the weights; -1 uses as many devices as possible that divide the batch.
    config.mesh.data = -1
    config.mesh.fsdp = 1  # devices over which each replica and its optimizer state are sharded

    config.tasks = ConfigDict()
    config.tasks.set = "nyudv2"  # key of tasks.table.TASK_SETS
    config.tasks.names = ()  # subset of the tasks to train; () trains all
    config.tasks.classes = ()  # names of semseg's classes; () uses the set's
    # Baseline score of every task for delta_m, in the units that the tables print; empty uses the
    # scores of the best constant predictions on the test set.
    config.tasks.baselines = ConfigDict()
    for task in itertools.chain(*TASK_SETS.values()):
        config.tasks.baselines[task.name] = config_dict.placeholder(float)

    config.model = ConfigDict()
    config.model.name = "mtmamba"  # key of models.mtmamba.MODELS
    config.model.encoder = "swin_large"  # key of models.swin.SWIN_SIZES
    config.model.expansion = 2  # inner channels of a Mamba block / its width (alpha)
    config.model.state_size = 16  # SSM states per channel
    config.model.encoder_drop_path_rate = 0.1  # rate of the encoder's last block
    config.model.decoder_drop_path_rate = 0.2  # rate of the decoder's first block
    config.model.dtype = "float32"  # compute dtype: float32 or bfloat16
    config.model.remat = "none"  # rematerialization: none, dots (keeps matrix products) or full
    # Forces a backend of the scan, such as "xla"; None chooses by platform.
    config.model.scan_implementation = config_dict.placeholder(str)

    config.data = ConfigDict()
    config.data.name = "synthetic"  # key of data_pipelines.sources.SOURCES
    # Folder of your own data, or the --data_dir of `prepare`; None uses TFDS's default.
    config.data.dir = config_dict.placeholder(str)
    config.data.size = (448, 576)  # height and width of training crops and evaluation images
    config.data.label_scale = 1  # height and width of labels relative to images
    config.data.train_examples = 795  # synthetic: size of the training set
    config.data.test_examples = 654  # synthetic: size of the test set
    config.data.num_workers = 0  # worker processes; 0 reads in threads of this process
    # Memory for caching raw examples: for the training set and the test set each, in each worker
    # process.
    config.data.cache_gib = 0.0

    config.augment = ConfigDict()  # see data_pipelines.transforms
    config.augment.scale = (0.5, 2.0)  # range of the random zoom
    config.augment.max_class_share = 0.75  # crops where one class covers more are redrawn
    config.augment.crop_tries = 10  # largest number of crops drawn
    config.augment.flip_probability = 0.5  # probability of a horizontal flip
    config.augment.brightness = 32.0  # largest shift of the values 0 to 255
    config.augment.contrast = (0.5, 1.5)  # range of the factor on the values
    config.augment.saturation = (0.5, 1.5)  # range of the factor on HSV saturation
    config.augment.hue = 18  # largest shift, in units of 2 degrees
    config.augment.jitter_probability = 0.5  # probability of each of the four colour changes

    config.loss = ConfigDict()
    config.loss.scheme = "log"  # how task losses are combined: log or sum
    config.loss.reduction = "image"  # losses are averaged per image or per batch
    config.loss.weights = ConfigDict()  # weight of each task
    for task in itertools.chain(*TASK_SETS.values()):
        config.loss.weights[task.name] = 1.0

    config.optimizer = ConfigDict()  # AdamW with polynomial decay, (1 - step/steps)^power
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0  # steps of linear warmup
    config.optimizer.power = 0.9
    config.optimizer.weight_decay = 1e-5
    config.optimizer.beta_1 = 0.9
    config.optimizer.beta_2 = 0.999
    config.optimizer.epsilon = 1e-8

    config.train = ConfigDict()
    config.train.steps = 50_000
    config.train.batch_size = 8  # global, over all devices
    config.train.microbatches = 1  # gradient accumulation: parts of a batch processed in turn
    config.train.log_every = 50  # steps
    config.train.eval_every = 1_000  # steps
    config.train.checkpoint_every = 1_000  # steps
    config.train.keep_checkpoints = 2  # number of latest checkpoints to keep, besides the best

    config.eval = ConfigDict()
    config.eval.batch_size = 8  # global, over all devices
    config.eval.panels = 6  # test images drawn with predictions, labels and errors
    return config


def to_plus(config: ConfigDict) -> None:
    """Changes a configuration to MTMamba++ (Lin et al., TPAMI 2025), as on PASCAL-Context."""
    config.model.name = "mtmamba_plus"
    config.optimizer.learning_rate = 8e-5
    config.optimizer.weight_decay = 1e-6
    config.train.steps = 40_000
