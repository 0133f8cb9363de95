"""Materials: two colours and a solid texture that mixes them.

No colour belongs to a class: walls, chairs and shirts draw from one palette. A pattern may tell
more (trousers are striped, books too), as it does in a real room.
"""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

PATTERNS = ("plain", "plain", "noise", "noise", "stripes", "checker", "dots", "wood", "wood")


@dataclasses.dataclass(frozen=True)
class Material:
    """The mix of two colours at a point p: with waves s1 = sin(k1.p + a1 + bend sin(k2.p + a2)) and
    s2 = sin(k2.p + a2), squash(steepness (m1 s1 + m2 s2 + m12 s1 s2)) in [-1, 1].

    Attributes:
      colours: [2 3] linear RGB in [0, 1].
      waves: [2 3] k1 and k2, radians a metre.
      phases: [2] a1 and a2.
      mix: [3] m1, m2, m12.
      bend: how far the second wave bends the first.
      steepness: 1 for soft, large for sharp borders.
      glow: light it gives off, as a share of its colour.
    """

    colours: np.ndarray
    waves: np.ndarray
    phases: np.ndarray
    mix: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bend: float = 0.0
    steepness: float = 1.0
    glow: float = 0.0

    def turned(self, rotation: np.ndarray) -> Material:
        """The same material on something turned by `rotation` [3 3]."""
        return dataclasses.replace(self, waves=self.waves @ rotation.T)

    def row(self) -> np.ndarray:
        """The numbers in the order `texture` reads: 3 + 3 + 3 + 3 + 2 + 3 + 1 + 1 + 1."""
        tail = (*self.phases, *self.mix, self.bend, self.steepness, self.glow)
        return np.concatenate([self.colours.ravel(), self.waves.ravel(), tail]).astype(np.float32)


def texture(rows: np.ndarray, points: np.ndarray, footprint: np.ndarray):
    """Colour and glow at points.

    Args:
      rows: float32 [m 20], a `Material.row` for each point.
      points: float32 [m 3], metres.
      footprint: float32 [m], metres of surface a pixel covers; finer patterns fade to their mean.

    Returns:
      Linear RGB [m 3] and glow [m].
    """
    first, second = rows[:, 0:3], rows[:, 3:6]
    k1, k2 = rows[:, 6:9], rows[:, 9:12]
    s2 = np.sin(np.einsum("mi,mi->m", k2, points) + rows[:, 13])
    s1 = np.sin(np.einsum("mi,mi->m", k1, points) + rows[:, 12] + rows[:, 17] * s2)
    value = rows[:, 14] * s1 + rows[:, 15] * s2 + rows[:, 16] * s1 * s2
    value *= rows[:, 18]
    value /= np.sqrt(1 + value * value)
    finest = np.sqrt(np.maximum(np.einsum("mi,mi->m", k1, k1), np.einsum("mi,mi->m", k2, k2)))
    # A wave that turns by more than 2.4 radians a pixel would alias.
    value *= np.clip(1.7 - 0.7 * finest * footprint, 0, 1)
    share = (0.5 + 0.5 * value)[:, None]
    return first + (second - first) * share, rows[:, 19]


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB [3]: half of them warm (wood, skin, cloth), half of any hue."""
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
    """A material with random colours.

    Args:
      rng: draws all of it.
      pattern: one of `PATTERNS`, "bands" (level stripes), or drawn.
      wavelength: the pattern's typical period, metres.
      wall: upright stripes and squares on walls along x and y, rather than squares on the ground.
      contrast: how much darker than the first colour the second usually is; 0 to 1.
    """
    pattern = pattern or PATTERNS[rng.integers(len(PATTERNS))]
    first = random_colour(rng)
    # The second colour is another shade of the first, or another colour altogether.
    shade = first * max(1 - contrast * rng.uniform(0.7, 1.3), 0.05)
    second = random_colour(rng) if rng.random() < 0.15 else shade
    k = 2 * np.pi / (wavelength * rng.uniform(0.7, 1.6))
    phases = rng.uniform(0, 2 * np.pi, 2)
    # Across x on one axis and y + z on the other, a grid shows on every axis-aligned face.
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
    """The same material giving off light."""
    return dataclasses.replace(material, glow=glow)
