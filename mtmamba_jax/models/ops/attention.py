"""Softmax attention within windows."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtmamba_jax.kernels.attention import pallas_triton as attention_kernels
from mtmamba_jax.kernels.manual_axes import vary_alike
from mtmamba_jax.models.ops.dispatch import with_flops, with_kernels
from mtmamba_jax.models.windows import shift_mask, shift_regions


def attention(
    qkv: Float[Array, "m l 3 heads c"],
    bias: Float[Array, "heads l l"],
    shifted: tuple[int, int, int] | None,
) -> Float[Array, "m l heads c"]:
    """Returns softmax attention within each of m windows of l pixels.

    Without a fused kernel the backward pass keeps the weights in the compute dtype: recomputing
    them costs more than reading them.

    Args:
      qkv: Queries (not yet scaled), keys and values.
      bias: Position bias, added to the scores.
      shifted: Arguments of `shift_regions` for shifted windows, None for others.
    """
    qkv, bias = vary_alike(qkv, bias)

    def plain(qkv, bias, *_):
        return _attention(qkv, bias, shifted)

    if not (bias.dtype == jnp.float32 and attention_kernels.supports(qkv)):
        return plain(qkv, bias)
    arrays: list[Array] = [qkv, bias]
    if shifted:
        arrays.append(shift_regions(*shifted))
    kernels, split = {"cuda": attention_kernels.attention}, (True, False, False)
    # Devices get whole images, whose windows have the regions.
    images = len(qkv) // (len(arrays[2]) if shifted else 1)
    return with_kernels(plain, kernels, arrays, split, batch_axis=0, batch=images)


@with_flops(None)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(qkv, bias, shifted):
    return _attention_forward(qkv, bias, shifted)[0]


def _attention_forward(qkv, bias, shifted):
    query, key, value = _split(qkv)
    scores = jnp.einsum("mqhc,mkhc->mhqk", query, key, preferred_element_type=jnp.float32) + bias
    if shifted:
        masked = jnp.float32(attention_kernels.MASKED)
        mask = jnp.where(shift_mask(*shifted), 0.0, masked)[None, :, None]
        by_image = scores.reshape(-1, mask.shape[1], *scores.shape[1:])
        scores = (by_image + mask).reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("mhqk,mkhc->mqhc", weights, value)
    return out, (qkv, weights, out)


def _attention_backward(shifted, residuals, dout):
    del shifted  # its mask is a constant of the scores
    qkv, weights, out = residuals
    query, key, value = _split(qkv)
    dvalue = jnp.einsum("mhqk,mqhc->mkhc", weights, dout)
    dweights = jnp.einsum("mqhc,mkhc->mhqk", dout, value, preferred_element_type=jnp.float32)
    # The mean that softmax subtracts from dweights: sum_k weights dweights = out . dout.
    mean = jnp.einsum("mqhc,mqhc->mhq", out, dout, preferred_element_type=jnp.float32)
    dscores = weights * (dweights - mean[..., None])
    dbias = dscores.sum(0)
    dscores = dscores.astype(qkv.dtype)
    dquery = jnp.einsum("mhqk,mkhc->mqhc", dscores, key) * _scale(qkv)
    dkey = jnp.einsum("mhqk,mqhc->mkhc", dscores, query)
    return jnp.stack([dquery, dkey, dvalue], 2), dbias


def _split(qkv: Array) -> tuple[Array, Array, Array]:
    """Returns scaled query, key and value [m l heads c]."""
    return qkv[:, :, 0] * _scale(qkv), qkv[:, :, 1], qkv[:, :, 2]


def _scale(qkv: Array) -> float:
    return qkv.shape[-1] ** -0.5


_attention.defvjp(_attention_forward, _attention_backward)
