"""Operations with hand-written gradients, which keep or move less memory than JAX's own.

Each operation also registers how the paper counts its arithmetic; `paper.cost` reads the rules.
"""

from mtmamba_jax.models.ops.attention import attention
from mtmamba_jax.models.ops.convolution import convolve_silu, depthwise_convolve
from mtmamba_jax.models.ops.dispatch import PAPER_FLOPS, with_flops
from mtmamba_jax.models.ops.gelu import gelu
from mtmamba_jax.models.ops.norm import EPSILON, blend, layer_norm
from mtmamba_jax.models.ops.products import inverse_deviation, wide_einsum

__all__ = [
    "EPSILON",
    "PAPER_FLOPS",
    "attention",
    "blend",
    "convolve_silu",
    "depthwise_convolve",
    "gelu",
    "inverse_deviation",
    "layer_norm",
    "wide_einsum",
    "with_flops",
]
