"""Named sizes of `ss2d` calls for tests and benchmarks, with random arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mtmamba_jax.kernels.ss2d.api import ACTIVATIONS, SHAPES


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """Sizes of one call of `ss2d`, named by the letters of `api`."""

    h: int
    w: int
    d: int
    t: int = 1
    b: int = 1
    k: int = 4
    n: int = 16
    r: int = 1

    def shapes(self, dtype: DTypeLike) -> list[jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of `ss2d`'s arrays, with activations of `dtype`."""
        sizes = vars(self)
        return [
            jax.ShapeDtypeStruct(
                tuple(sizes[letter] for letter in letters.split()),
                dtype if name in ACTIVATIONS else jnp.float32,
            )
            for name, letters in SHAPES.items()
        ]

    def arguments(self, step_scale: float = 1.0) -> tuple[np.ndarray, ...]:
        """Returns random values for the eight arrays of `ss2d`, float32.

        `step_scale` multiplies the step sizes, which Mamba initializes between 0.001 and 0.1.
        """
        rng = np.random.default_rng(0)
        t, b, h, w, d, k, n, r = self.t, self.b, self.h, self.w, self.d, self.k, self.n, self.r

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        step = step_scale * np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (t, k, d)))
        # The inverse of softplus. Above 20 it is the identity, and later exp would overflow.
        dt_bias = np.where(step > 20, step, np.log(np.expm1(np.minimum(step, 20))))
        dt_weight = rng.uniform(-1, 1, (t, k, r, d)) * r**-0.5
        A = -np.exp(rng.uniform(0, np.log(n + 1), (t, k, d, n)))
        maps = [normal(t, b, h, w, d), normal(t, b, h, w, k, r)]
        maps += [dt_weight, dt_bias, A, normal(t, b, h, w, k, n), normal(t, b, h, w, k, n)]
        return tuple(np.asarray(v, np.float32) for v in (*maps, normal(t, k, d)))


def _decoder(t: int, b: int) -> dict[str, ArgSpec]:
    """Returns MTMamba's decoder stages for Swin-L at 448x576: d = 2c and r = ceil(c/16)."""
    stages = {"stage1": (28, 36, 768), "stage2": (56, 72, 384), "stage3": (112, 144, 192)}
    return {
        f"{name}_t{t}_b{b}": ArgSpec(h, w, d=2 * c, t=t, b=b, r=c // 16)
        for name, (h, w, c) in stages.items()
    }


# NYUDv2 has four tasks and PASCAL-Context five; t = 1 is the shared branch.
DECODER = {name: spec for t in (1, 4, 5) for b in (1, 8) for name, spec in _decoder(t, b).items()}

# A decoder stage of a small model that trains on a CPU.
SMALL = {"small_t4_b4": ArgSpec(24, 32, d=64, t=4, b=4, r=2)}

ODD = {
    "pixel": ArgSpec(1, 1, d=3, n=2),
    "row": ArgSpec(1, 19, d=5, n=3),
    "column": ArgSpec(23, 1, d=5, n=3),
    "prime": ArgSpec(7, 11, d=13, b=2, n=5, r=3),
    "whole_chunks": ArgSpec(4, 8, d=8, t=3, b=2, n=16, r=2),
    "one_state": ArgSpec(9, 17, d=4, t=2, b=1, n=1, r=1),
}

SPECS = DECODER | SMALL | ODD
