"""MTMamba: start here. Encoder -> three decoder stages -> a head for each task (Fig. 1)."""

from __future__ import annotations

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


def create_model(
    name: str = "mtmamba",
    *,
    encoder: str = "swin_large",
    tasks: Sequence[Task],
    expansion: int = 2,
    state_size: int = 16,
    encoder_drop_path_rate: float = 0.1,
    decoder_drop_path_rate: float = 0.2,
    dtype: str = "float32",
    remat: str = "none",
    scan_implementation: str | None = None,
    rngs: nnx.Rngs,
) -> MTMamba:
    """Builds a model by name; the defaults are the paper's.

    Args:
      name: key of `MODELS`.
      encoder: key of `swin.SWIN_SIZES`.
      tasks: as in `MTMamba`; sets are in `mtmamba_jax.tasks`.
      expansion: inner channels of a Mamba block over its width (the paper's alpha).
      state_size: states a channel.
      encoder_drop_path_rate: of the encoder's last block.
      decoder_drop_path_rate: of the decoder's first block.
      dtype: of the computation, "float32" or "bfloat16"; parameters, the recurrence, the norms'
        statistics and the logits are float32 in either.
      remat: key of `layers.REMAT_POLICIES`.
      scan_implementation: forces a backend of `kernels.ss2d`; None chooses by platform.
      rngs: for the initial weights.

    Raises:
      ValueError: an unknown name; the message gives the valid ones.
    """
    check_name("model", name, MODELS)
    check_name("encoder", encoder, SWIN_SIZES)
    check_name("dtype", dtype, DTYPES)
    check_name("remat policy", remat, REMAT_POLICIES)
    settings = MambaSettings(expansion, state_size, DTYPES[dtype], scan_implementation)

    def construct(rngs: nnx.Rngs | Parts) -> MTMamba:
        swin = Swin(
            SWIN_SIZES[encoder],
            drop_path_rate=encoder_drop_path_rate,
            dtype=settings.dtype,
            remat=remat,
            rngs=rngs,
        )
        return MODELS[name](
            swin, tasks, settings, drop_path_rate=decoder_drop_path_rate, remat=remat, rngs=rngs
        )

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


def abstract_model(**settings) -> MTMamba:
    """Returns `create_model(**settings)` with shapes instead of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: create_model(**settings, rngs=nnx.Rngs(0)))


def count_parameters(model: nnx.Module) -> int:
    """Returns how many numbers a model's parameters hold; works on abstract models too."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def to_linen(**settings):
    """Returns `create_model(**settings)` as a Linen module for Linen code bases.

    `module.init(key, images)` gives `{"params": ...}`; `module.apply(variables, images)` predicts.
    """
    return nnx.bridge.to_linen(create_model, **settings)
