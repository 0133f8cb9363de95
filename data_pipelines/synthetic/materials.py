"""Materials: two colours and a solid texture that mixes them.

Colour alone does not reveal the class: walls, chairs and shirts draw from the same palette. A
pattern may (trousers and books are striped), as in a real room.
"""

import colorsys
import dataclasses
from typing import Self

import numpy as np
from jaxtyping import Float, Float32

PATTERNS = ("plain", "plain", "noise", "noise", "stripes", "checker", "dots", "wood", "wood")


@dataclasses.dataclass(frozen=True)
class Material:
    """A solid texture that mixes two colours.

    With the waves s2 = sin(k2.p + a2) and s1 = sin(k1.p + a1 + bend s2) at a point p, the mix is
    squash(steepness (m1 s1 + m2 s2 + m12 s1 s2)) in [-1, 1], where squash(x) = x / sqrt(1 + x^2).

    Attributes:
      colours: Both colours, linear RGB in [0, 1].
      waves: Wave vectors k1 and k2, radians per metre.
      phases: Phases a1 and a2.
      mix: Weights m1, m2 and m12.
      bend: Amplitude with which the second wave bends the first, radians.
      steepness: 1 for soft borders between the colours, large for sharp ones.
      glow: Emitted light as a fraction of the colour.
    """

    colours: Float[np.ndarray, "2 3"]
    waves: Float[np.ndarray, "2 3"]
    phases: Float[np.ndarray, "2"]
    mix: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bend: float = 0.0
    steepness: float = 1.0
    glow: float = 0.0

    def rotated(self, rotation: Float[np.ndarray, "3 3"]) -> Self:
        """Returns the material of an object that is rotated."""
        return dataclasses.replace(self, waves=self.waves @ rotation.T)

    def row(self) -> Float32[np.ndarray, "20"]:
        """Returns all numbers in the order that `texture` reads."""
        tail = (*self.phases, *self.mix, self.bend, self.steepness, self.glow)
        return np.concatenate([self.colours.ravel(), self.waves.ravel(), tail]).astype(np.float32)


def texture(
    rows: Float32[np.ndarray, "m 20"],
    points: Float32[np.ndarray, "m 3"],
    footprint: Float32[np.ndarray, " m"],
) -> tuple[Float32[np.ndarray, "m 3"], Float32[np.ndarray, " m"]]:
    """Returns linear RGB and glow at points (metres), given each point's `Material.row`.

    Patterns finer than a pixel's `footprint` on the surface (metres) fade to their mean.
    """
    first, second = rows[:, 0:3], rows[:, 3:6]
    k1, k2 = rows[:, 6:9], rows[:, 9:12]
    s2 = np.sin(np.einsum("mi,mi->m", k2, points) + rows[:, 13])
    s1 = np.sin(np.einsum("mi,mi->m", k1, points) + rows[:, 12] + rows[:, 17] * s2)
    value = rows[:, 14] * s1 + rows[:, 15] * s2 + rows[:, 16] * s1 * s2
    value *= rows[:, 18]
    value /= np.sqrt(1 + value * value)
    finest = np.sqrt(np.maximum(np.einsum("mi,mi->m", k1, k1), np.einsum("mi,mi->m", k2, k2)))
    # A wave that advances by more than 2.4 radians per pixel would alias.
    value *= np.clip(1.7 - 0.7 * finest * footprint, 0, 1)
    share = (0.5 + 0.5 * value)[:, None]
    return first + (second - first) * share, rows[:, 19]


def random_colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """Draws linear RGB: half of the colours are warm (wood, skin, cloth), half have any hue."""
    hue = rng.normal(0.07, 0.035) if rng.random() < 0.5 else rng.random()
    saturation, value = 0.75 * rng.random() ** 1.3, rng.uniform(0.25, 0.95)
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value)) ** 2.2


def random_material(
    rng: np.random.Generator,
    pattern: str | None = None,
    wavelength: float = 0.15,
    wall: bool = False,
    contrast: float = 0.3,
) -> Material:
    """Draws a material.

    Args:
      pattern: One of `PATTERNS` or "bands" (horizontal stripes); None draws one of `PATTERNS`.
      wavelength: Typical period of the pattern, metres.
      wall: Whether stripes are upright and checks lie in walls along x and y, not on the ground.
      contrast: Typical darkening of the second colour relative to the first, 0 to 1.
    """
    pattern = pattern or PATTERNS[rng.integers(len(PATTERNS))]
    first = random_colour(rng)
    # The second colour is a shade of the first, or sometimes an unrelated colour.
    shade = first * max(1 - contrast * rng.uniform(0.7, 1.3), 0.05)
    second = random_colour(rng) if rng.random() < 0.15 else shade
    k = 2 * np.pi / (wavelength * rng.uniform(0.7, 1.6))
    phases = rng.uniform(0, 2 * np.pi, 2)
    # With x on one axis and y + z on the other, a grid appears on every axis-aligned face.
    grid = np.array([[k, k, 0], [0, 0, k]] if wall else [[k, 0, 0], [0, k, k]])
    if pattern == "plain":
        return Material(np.stack([first, first]), grid, phases)
    colours = np.stack([first, second])
    if pattern == "noise":
        waves = rng.normal(0, k / 3, (2, 3))
        return Material(colours, waves, phases, (0.6, 0.3, 0.5), bend=2.0)
    if pattern == "stripes":
        return Material(colours, grid, phases, (1.0, 0.0, 0.0), steepness=5.0)
    if pattern == "bands":
        waves = np.array([[0, 0, k], [k, 0, 0]])
        return Material(colours, waves, phases, (1.0, 0.0, 0.0), steepness=5.0)
    if pattern == "checker":
        return Material(colours, grid, phases, (0.0, 0.0, 1.0), steepness=8.0)
    if pattern == "dots":
        return Material(colours, grid, phases, (0.5, 0.5, 0.3), steepness=2.5)
    grain = np.array([[k / 12, k, k], rng.normal(0, k / 6, 3)])
    return Material(colours, grain, phases, (1.0, 0.0, 0.0), bend=1.5)


def glowing(material: Material, glow: float) -> Material:
    """Returns the material with emitted light, a fraction of its colour."""
    return dataclasses.replace(material, glow=glow)
