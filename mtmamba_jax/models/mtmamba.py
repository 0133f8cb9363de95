"""MTMamba: start here. Encoder -> three decoder stages -> a head for each task (Fig. 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.labels import resize_logits
from mtmamba_jax.messages import check_name
from mtmamba_jax.models.ablations import ABLATIONS
from mtmamba_jax.models.blocks import STM, MambaSettings
from mtmamba_jax.models.decoder import STAGE_BLOCKS, Block, MambaDecoder
from mtmamba_jax.models.heads import ExpandHeads
from mtmamba_jax.models.initializers import Parts, initialise
from mtmamba_jax.models.layers import REMAT_POLICIES, fold
from mtmamba_jax.models.plus import SCTM, ConvHeads
from mtmamba_jax.models.swin import SWIN_SIZES, Swin
from mtmamba_jax.models.weights import split_model
from mtmamba_jax.tasks import Task

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class MTMamba(nnx.Module):
    """Predicts a dense map for each task from one image.

    Args:
      encoder: a module with `widths` (channels of its four maps, doubling) that maps images
        [b h w 3] and a random key (or None) to maps of strides 4, 8, 16, 32; such as `Swin`.
      tasks: what to predict, in the order the cross-task block is to see them.
      settings: of the Mamba blocks.
      drop_path_rate: of the decoder's first block; it falls linearly to 0 at the last.
      remat: key of `layers.REMAT_POLICIES`: what each block keeps for the backward pass.
      rngs: for the initial weights.
    """

    stage_blocks = STAGE_BLOCKS
    make_heads = ExpandHeads

    def __init__(
        self,
        encoder: nnx.Module,
        tasks: Sequence[Task],
        settings: MambaSettings | None = None,
        *,
        drop_path_rate: float = 0.2,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        if not tasks:
            raise ValueError("MTMamba needs at least one task; got none.")
        settings = settings or MambaSettings()
        self.encoder = encoder
        self.decoder = MambaDecoder(
            len(tasks),
            encoder.widths,
            settings,
            blocks=self.stage_blocks,
            drop_path_rate=drop_path_rate,
            remat=remat,
            rngs=rngs,
        )
        self.heads = self.make_heads(tasks, encoder.widths[0], dtype=settings.dtype, rngs=rngs)

    def __call__(
        self, images: Array, *, training: bool = False, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        """Predicts all tasks.

        Args:
          images: float [b h w 3], normalised with ImageNet's mean and deviation; any h and w.
          training: drop path on, which needs `rngs`; normalises by the batch where a model does.
          rngs: source of the stream `drop_path`.

        Returns:
          {task name: float32 logits [b h w channels]}, at the images' size.

        Raises:
          ValueError: images of another shape, or training without rngs.
        """
        features = self.features(images, training=training, rngs=rngs)
        return self.logits(features, images.shape[1:3], training=training)

    def features(
        self, images: Array, *, training: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Returns what the heads are given, the final decoder features: [t b h/4 w/4 c].

        h/4 and w/4 are rounded up, t is in the order of the model's tasks. Arguments and errors are
        those of `__call__`.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [b h w 3], channels last; got {images.shape}.")
        if training and rngs is None:
            raise ValueError("training=True drops paths at random: pass rngs=nnx.Rngs(...).")
        key = rngs.drop_path() if training else None
        return self.decoder(self.encoder(images, fold(key, 0)), fold(key, 1))

    def logits(
        self, features: Array, size: Sequence[int], *, training: bool = False
    ) -> dict[str, jax.Array]:
        """Returns {task name: float32 logits [b h w channels]} of `features`, at size = (h, w)."""
        found = self.heads(features, training=training)
        return {name: resize_logits(value, size) for name, value in found.items()}


class MTMambaPlus(MTMamba):
    """MTMamba++ (Lin et al., TPAMI 2025): tasks meet in `SCTM`, heads are convolutions."""

    stage_blocks = (STM, STM, SCTM)
    make_heads = ConvHeads


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Everything that defines a model but its tasks; the defaults are the paper's.

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
      tasks: Tasks to predict, such as `NYUDV2` of `mtmamba_jax.tasks`.
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
    dtype, remat = DTYPES[settings.dtype], settings.remat
    mamba = MambaSettings(
        settings.expansion, settings.state_size, dtype, settings.scan_implementation
    )

    def construct(rngs: nnx.Rngs | Parts) -> MTMamba:
        encoder = Swin(
            SWIN_SIZES[settings.encoder],
            drop_path_rate=settings.encoder_drop_path_rate,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        rate = settings.decoder_drop_path_rate
        make = MODELS[settings.name]
        return make(encoder, tasks, mamba, drop_path_rate=rate, remat=remat, rngs=rngs)

    return initialise(construct, rngs)


def with_blocks(blocks: Sequence[Block]) -> type[MTMamba]:
    """Returns MTMamba with other blocks in each decoder stage."""

    class Ablation(MTMamba):
        stage_blocks = tuple(blocks)

    return Ablation


MODELS: dict[str, Callable[..., MTMamba]] = {
    "mtmamba": MTMamba,
    "mtmamba_plus": MTMambaPlus,
    **{name: with_blocks(blocks) for name, blocks in ABLATIONS.items()},
}


def abstract_model(settings: ModelSettings, tasks: Sequence[Task]) -> MTMamba:
    """Returns a model that holds shapes instead of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: _create(settings, tasks, nnx.Rngs(0)))


def build(settings: ModelSettings, tasks: Sequence[Task], seed: int) -> tuple[nnx.GraphDef, dict]:
    """Returns a model's structure and its initial parameters, a nested dict.

    Raises:
      ValueError: If a name in `settings` is unknown.
    """
    return split_model(_create(settings, tasks, nnx.Rngs(seed)))


def abstract_build(settings: ModelSettings, tasks: Sequence[Task]) -> tuple[nnx.GraphDef, dict]:
    """Returns what `build` returns, with shapes instead of arrays: nothing is allocated."""
    return split_model(abstract_model(settings, tasks))


def count_parameters(model: nnx.Module) -> int:
    """Returns how many numbers a model's parameters hold; works on abstract models too."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def to_linen(**settings):
    """Returns `create_model(**settings)` as a Linen module for Linen code bases.

    `module.init(key, images)` gives `{"params": ...}`; `module.apply(variables, images)` predicts.
    """
    return nnx.bridge.to_linen(create_model, **settings)
