"""Every configuration key, its default and its meaning; model and optimizer are the paper's.

Other configurations start from `get_config()` and change what differs; a key that is not here
does not exist. On the command line: `--config=NAME[:VARIANT]`, and `--config.key=value` for single
keys.
"""

import itertools

from ml_collections import ConfigDict, config_dict

from mtmamba_jax.tasks import TASK_SETS


def get_config() -> ConfigDict:
    """Returns the defaults: MTMamba with Swin-Large, 50,000 steps of batch 8 (section 4.1)."""
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data, augmentation and drop path

    # A loss or gradient that is NaN or infinite: stop, or skip the step (its weights stay as they
    # were), up to training.guard.MOST_SKIPS in a row.
    config.on_nonfinite = "stop"

    config.init = ConfigDict()  # weights to begin with, in place of random ones
    # Work directory of a run of the same model and tasks, or a file of the official code's weights
    # (.safetensors, .pth, .pth.tar, .pt, .bin; hf:REPO).
    config.init.run = config_dict.placeholder(str)
    # The same, with the same encoder; or a file of a Swin encoder by Microsoft, mmsegmentation,
    # timm or Hugging Face. Its weights go before those of init.run. A run that goes on from its own
    # checkpoints reads neither.
    config.init.encoder = config_dict.placeholder(str)

    config.mesh = ConfigDict()  # of devices: data x fsdp of them, each with its part of a batch
    # Copies of the weights; -1: as many as there are devices for and as divide the batches.
    config.mesh.data = -1
    config.mesh.fsdp = 1  # devices that share one copy of weights and optimizer state

    config.tasks = ConfigDict()
    config.tasks.set = "nyudv2"  # key of tasks.TASK_SETS
    config.tasks.names = ()  # some of the set's tasks; () is all of them
    config.tasks.classes = ()  # names of semseg's classes, in place of the set's
    # The score that each task's gain is measured against in delta_m, by task name, in the units
    # the tables print; empty: the best constant prediction's, measured on the test set.
    config.tasks.baselines = ConfigDict()
    for task in itertools.chain(*TASK_SETS.values()):
        config.tasks.baselines[task.name] = config_dict.placeholder(float)

    config.model = ConfigDict()
    config.model.name = "mtmamba"  # key of models.mtmamba.MODELS
    config.model.encoder = "swin_large"  # key of models.swin.SWIN_SIZES
    config.model.expansion = 2  # inner channels of a Mamba block over its width (alpha)
    config.model.state_size = 16  # states a channel
    config.model.encoder_drop_path_rate = 0.1  # of the encoder's last block
    config.model.decoder_drop_path_rate = 0.2  # of the decoder's first block
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16
    config.model.remat = "none"  # what blocks keep for the backward pass: none, dots or full
    # Forces a backend of the scan, such as "xla"; None chooses by platform.
    config.model.scan_implementation = config_dict.placeholder(str)

    config.data = ConfigDict()
    config.data.name = "synthetic"  # key of data_pipelines.sources.SOURCES
    # folder: of one's own data. Prepared datasets: where `prepare` wrote them; None: TFDS's place.
    config.data.dir = config_dict.placeholder(str)
    config.data.size = (448, 576)  # height and width of training crops and of evaluation
    config.data.label_scale = 1  # labels are this many times as high and wide as the images
    config.data.train_examples = 795  # synthetic: size of the training set
    config.data.test_examples = 654  # synthetic: size of the test set
    config.data.num_workers = 0  # reading processes; 0 reads in threads of this process
    # Memory for examples kept after their first reading, for training and test set each, in each
    # reading process.
    config.data.cache_gib = 0.0

    config.augment = ConfigDict()  # of training images; see data_pipelines.transforms
    config.augment.scale = (0.5, 2.0)  # range of the random zoom
    config.augment.max_class_share = 0.75  # a crop with more of one class is drawn again
    config.augment.crop_tries = 10  # crops drawn at most
    config.augment.flip_probability = 0.5  # of mirroring left to right
    config.augment.brightness = 32.0  # largest shift of the 0..255 values
    config.augment.contrast = (0.5, 1.5)  # range of the factor on the values
    config.augment.saturation = (0.5, 1.5)  # range of the factor on HSV saturation
    config.augment.hue = 18  # largest turn, in units of 2 degrees
    config.augment.jitter_probability = 0.5  # of each of the four colour changes

    config.loss = ConfigDict()
    config.loss.scheme = "log"  # total of the tasks' losses: log or sum
    config.loss.reduction = "image"  # unit that losses are averaged in: image or batch
    config.loss.weights = ConfigDict()  # of each task in the total
    for task in itertools.chain(*TASK_SETS.values()):
        config.loss.weights[task.name] = 1.0

    config.optimizer = ConfigDict()  # AdamW; its rate falls as (1 - step/steps)^power
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0  # steps of linear rise to that rate
    config.optimizer.power = 0.9
    config.optimizer.weight_decay = 1e-5
    config.optimizer.beta_1 = 0.9
    config.optimizer.beta_2 = 0.999
    config.optimizer.epsilon = 1e-8

    config.train = ConfigDict()
    config.train.steps = 50_000
    config.train.batch_size = 8  # of all devices together
    config.train.microbatches = 1  # parts of a batch whose gradients are added up one by one
    config.train.log_every = 50  # steps
    config.train.eval_every = 1_000  # steps
    config.train.checkpoint_every = 1_000  # steps
    config.train.keep_checkpoints = 2  # latest ones; the best is kept beside them

    config.eval = ConfigDict()
    config.eval.batch_size = 8  # of all devices together
    config.eval.panels = 6  # test images drawn with predictions, labels and errors
    return config


def to_plus(config: ConfigDict) -> None:
    """Makes a recipe that of MTMamba++ (Lin et al., TPAMI 2025), as on PASCAL-Context."""
    config.model.name = "mtmamba_plus"
    config.optimizer.learning_rate = 8e-5
    config.optimizer.weight_decay = 1e-6
    config.train.steps = 40_000
