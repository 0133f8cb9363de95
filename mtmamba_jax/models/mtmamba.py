"""MTMamba and MTMamba++: an encoder, three decoder stages and a head for each task (Fig. 1)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mtmamba_jax.array_types import Features, TaskFeatures
from mtmamba_jax.messages import check_name
from mtmamba_jax.models.ablations import ABLATIONS
from mtmamba_jax.models.blocks import STM, MambaSettings
from mtmamba_jax.models.decoder import STAGE_BLOCKS, MambaDecoder
from mtmamba_jax.models.heads import ExpandHeads
from mtmamba_jax.models.initializers import initialize
from mtmamba_jax.models.layers import REMAT_POLICIES, fold
from mtmamba_jax.models.patches import check_images
from mtmamba_jax.models.plus import SCTM, ConvHeads
from mtmamba_jax.models.swin import SWIN_SIZES, Swin
from mtmamba_jax.models.weights import split_model
from mtmamba_jax.tasks.labels import resize_logits
from mtmamba_jax.tasks.table import Task

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Encoder(Protocol):
    """A module that maps images to feature maps of strides 4, 8, 16 and 32; a key drops paths.

    Attributes:
      widths: Channels of the four maps, doubling.
    """

    widths: tuple[int, ...]

    def __call__(
        self, images: Float[Array, "b h w 3"], key: jax.Array | None = None
    ) -> Sequence[Features]:
        """Returns the four maps, finest first."""
        ...


class MTMamba(nnx.Module):
    """MTMamba (Lin et al., ECCV 2024): predicts a dense map for each task from one image.

    Example:
      >>> encoder = Swin(SWIN_SIZES["swin_tiny"], rngs=nnx.Rngs(0))
      >>> model = MTMamba(encoder, NYUDV2, rngs=nnx.Rngs(1))
      >>> logits = model(images)  # {"semseg": [b h w 40], "depth": [b h w 1], ...}

    Args:
      encoder: Encoder of the image, such as `Swin`.
      tasks: Tasks to predict, in the order in which the cross-task blocks see them.
      settings: Settings of the Mamba blocks; None is the paper's.
      drop_path_rate, remat: See `decoder.MambaDecoder`.

    Raises:
      ValueError: If there is no task, or two have the same name.
    """

    stage_blocks = STAGE_BLOCKS
    make_heads = ExpandHeads

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[Task],
        settings: MambaSettings | None = None,
        *,
        drop_path_rate: float = 0.2,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        if not tasks:
            raise ValueError("MTMamba needs at least one task; got none.")
        names = [task.name for task in tasks]
        if len({*names}) < len(names):
            raise ValueError(f"MTMamba needs tasks of different names; got {', '.join(names)}.")
        settings, widths = settings or MambaSettings(), encoder.widths
        self.encoder = encoder
        self.decoder = MambaDecoder(
            len(tasks),
            widths,
            settings,
            self.stage_blocks,
            drop_path_rate=drop_path_rate,
            remat=remat,
            rngs=rngs,
        )
        self.heads = self.make_heads(tasks, widths[0], dtype=settings.dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        *,
        training: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "b h w channels"]]:
        """Predicts all tasks.

        Args:
          images: Images of any size, normalised with ImageNet's mean and deviation.
          training: Whether to drop paths, which needs `rngs`, and to normalise by the batch where
            the model has BatchNorm.
          rngs: Random generators with the stream `drop_path`.

        Returns:
          Float32 logits at the images' size, by task name.

        Raises:
          ValueError: If images have another shape, or if training without rngs.
        """
        images = jnp.asarray(images)
        features = self.features(images, training=training, rngs=rngs)
        return self.logits(features, images.shape[1:3], training=training)

    def features(
        self,
        images: Float[Array, "b h w 3"],
        *,
        training: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "t b ceil(h/4) ceil(w/4) c"]:
        """Returns the final decoder features, which the heads read; t is in the tasks' order.

        Arguments and errors are those of `__call__`.
        """
        images = jnp.asarray(images)
        check_images(images)
        key = None
        if training:
            if rngs is None:
                raise ValueError("training=True drops paths at random: pass rngs=nnx.Rngs(...).")
            key = rngs.drop_path()
        return self.decoder(self.encoder(images, fold(key, 0)), fold(key, 1))

    def logits(
        self, features: TaskFeatures, size: Sequence[int], *, training: bool = False
    ) -> dict[str, Float[Array, "b height width channels"]]:
        """Returns float32 logits of `features` by task name, at `size` = (height, width)."""
        found = self.heads(features, training=training)
        return {name: resize_logits(value, size) for name, value in found.items()}


class MTMambaPlus(MTMamba):
    """MTMamba++ (Lin et al., TPAMI 2025): `SCTM` blocks exchange features, heads are convolutions.

    Arguments and methods are those of `MTMamba`.
    """

    stage_blocks = (STM, STM, SCTM)
    make_heads = ConvHeads


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What defines a model, apart from its tasks; the defaults are the paper's.

    Attributes:
      name: Key of `MODELS`.
      encoder: Key of `swin.SWIN_SIZES`.
      expansion: Inner channels of a Mamba block over its width (the paper's alpha).
      state_size: States per channel of the selective scan.
      encoder_drop_path_rate: Drop-path rate of the encoder's last block; it rises linearly from 0.
      decoder_drop_path_rate: Drop-path rate of the decoder's first block; it falls linearly to 0.
      dtype: Compute dtype, "float32" or "bfloat16". Parameters, the recurrence, the statistics of
        the norms and the logits are float32 in either case.
      remat: Key of `layers.REMAT_POLICIES`: what each block keeps for the backward pass.
      scan_implementation: Backend of `kernels.ss2d` to force; None chooses one by platform.
    """

    name: str = "mtmamba"
    encoder: str = "swin_large"
    expansion: int = 2
    state_size: int = 16
    encoder_drop_path_rate: float = 0.1
    decoder_drop_path_rate: float = 0.2
    dtype: str = "float32"
    remat: str = "none"
    scan_implementation: str | None = None


def create_model(
    name: str = "mtmamba", *, tasks: Sequence[Task], rngs: nnx.Rngs, **settings
) -> MTMamba:
    """Creates a model with initial weights.

    Example:
      >>> model = create_model("mtmamba", encoder="swin_tiny", tasks=NYUDV2, rngs=nnx.Rngs(0))
      >>> images = jnp.zeros((1, 448, 576, 3))  # normalised RGB
      >>> model(images)["depth"].shape
      (1, 448, 576, 1)

    Args:
      name: Key of `MODELS`, such as "mtmamba" or "mtmamba_plus".
      tasks: Tasks to predict, such as `NYUDV2` of `mtmamba_jax.tasks.table`.
      rngs: Random generators of the initial weights.
      **settings: Other fields of `ModelSettings`, such as `encoder` and `dtype`.

    Raises:
      ValueError: If a name is unknown; the message lists the valid ones.
    """
    return _create(ModelSettings(name, **settings), tasks, rngs)


def _create(settings: ModelSettings, tasks: Sequence[Task], rngs: nnx.Rngs) -> MTMamba:
    check_name("model", settings.name, MODELS)
    check_name("encoder", settings.encoder, SWIN_SIZES)
    check_name("dtype", settings.dtype, DTYPES)
    check_name("remat policy", settings.remat, REMAT_POLICIES)
    s, dtype, size = settings, DTYPES[settings.dtype], SWIN_SIZES[settings.encoder]
    mamba = MambaSettings(s.expansion, s.state_size, dtype, s.scan_implementation)

    def construct(rngs: Any) -> MTMamba:
        encoder = Swin(
            size, drop_path_rate=s.encoder_drop_path_rate, dtype=dtype, remat=s.remat, rngs=rngs
        )
        make, rate = MODELS[s.name], s.decoder_drop_path_rate
        return make(encoder, tasks, mamba, drop_path_rate=rate, remat=s.remat, rngs=rngs)

    return initialize(construct, rngs)


MODELS: dict[str, Callable[..., MTMamba]] = {
    "mtmamba": MTMamba,
    "mtmamba_plus": MTMambaPlus,
    **{k: type("Ablation", (MTMamba,), {"stage_blocks": v}) for k, v in ABLATIONS.items()},
}
"""Models by name: the two papers', and those of the first paper's ablations."""


def abstract_model(settings: ModelSettings, tasks: Sequence[Task]) -> MTMamba:
    """Returns a model that holds shapes instead of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: _create(settings, tasks, nnx.Rngs(0)))


def build(settings: ModelSettings, tasks: Sequence[Task], seed: int) -> tuple[nnx.GraphDef, dict]:
    """Returns a model's structure and its initial parameters, a nested dict.

    Raises ValueError if a name in `settings` is unknown.
    """
    return split_model(_create(settings, tasks, nnx.Rngs(seed)))


def abstract_build(settings: ModelSettings, tasks: Sequence[Task]) -> tuple[nnx.GraphDef, dict]:
    """Returns what `build` returns, with shapes instead of arrays: nothing is allocated."""
    return split_model(abstract_model(settings, tasks))


def to_linen(name: str = "mtmamba", **settings):
    """Returns `create_model(name, **settings)` as a Linen module, for Linen code bases.

    Example:
      >>> module = to_linen(encoder="swin_tiny", tasks=NYUDV2)
      >>> variables = module.init(jax.random.key(0), images)  # {"params": ...}
      >>> logits = module.apply(variables, images)
    """
    return nnx.bridge.to_linen(create_model, name, **settings)
