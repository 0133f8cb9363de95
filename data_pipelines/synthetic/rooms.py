"""A room and the places in it: against a wall, on a wall, free on the floor, on another piece."""

from __future__ import annotations

import numpy as np

from mtmamba_jax.data_pipelines.synthetic.materials import random_material
from mtmamba_jax.data_pipelines.synthetic.pieces import Piece, Scene, turn

LEFT, RIGHT, BACK = "left", "right", "back"
"""The walls at x = 0, x = width and y = length. The camera's own wall, y = 0, stays bare."""

_YAW = {BACK: 0.0, LEFT: np.pi / 2, RIGHT: -np.pi / 2}
_TRIES = 12


class Room:
    """An empty room that is filled piece by piece, never two in one place.

    Args:
      rng: draws materials and places.
      size: width, length and height in metres.
      camera: position [3]; the floor within `clearance` metres of it stays free.
      yaw: where the camera looks (radians, counter-clockwise from +y).
    """

    def __init__(self, rng, size, camera, yaw: float, clearance: float):
        self.rng, self.size, self.camera, self.yaw = rng, size, np.asarray(camera), yaw
        self.clearance = clearance
        self.scene = Scene()
        # (middle 1, middle 2, half 1, half 2) of what is taken: of the floor, and of each wall.
        self._floor: list[tuple] = []
        self._walls: dict[str, list[tuple]] = {LEFT: [], RIGHT: [], BACK: []}
        wall = random_material(rng, wavelength=0.5, wall=True, contrast=0.15)
        walls = [wall, wall, wall, wall]
        if rng.random() < 0.3:
            walls[rng.integers(4)] = random_material(rng, wavelength=0.5, wall=True, contrast=0.15)
        floor = random_material(rng, rng.choice(["wood", "checker"]), 0.35)
        ceiling = random_material(rng, rng.choice(["plain", "noise"]), 0.5, contrast=0.15)
        self.scene.add_room(size, [*walls, floor, ceiling])

    def _free_floor(self, x, y, half_x, half_y) -> bool:
        width, length, _ = self.size
        if not (half_x <= x <= width - half_x and half_y <= y <= length - half_y):
            return False
        gap = np.hypot(
            max(abs(x - self.camera[0]) - half_x, 0), max(abs(y - self.camera[1]) - half_y, 0)
        )
        return gap >= self.clearance and not _meets(self._floor, x, y, half_x, half_y)

    def _put(self, piece: Piece, x, y, yaw, z=0.0, taken=True):
        half_x, half_y = np.abs(turn(yaw)[:2, :2]) @ (piece.width / 2, piece.depth / 2)
        if taken and not self._free_floor(x, y, half_x, half_y):
            return None
        if taken:
            self._floor.append((x, y, half_x + 0.03, half_y + 0.03))
        position = np.array([x, y, z])
        self.scene.add(piece, position, yaw)
        return position, yaw

    def _along(self, wall: str, half: float) -> float:
        """A point along a wall for something 2 * half wide, not beside the camera."""
        width, length, _ = self.size
        low, high = (0.0, width) if wall == BACK else (self.camera[1] + 0.6, length)
        return self.rng.uniform(low + half + 0.03, max(high - half - 0.03, low + half + 0.031))

    def by_wall(self, piece: Piece, walls=(LEFT, RIGHT, BACK, BACK)):
        """Stands the piece with its back against one of the walls.

        Returns (position [3], yaw), or None where no place was found; so do the others.
        """
        width, length, _ = self.size
        for _ in range(_TRIES):
            wall = walls[self.rng.integers(len(walls))]
            along, away = self._along(wall, piece.width / 2), piece.depth / 2 + 0.02
            span = (along, piece.height / 2, piece.width / 2, piece.height / 2)
            if _meets(self._walls[wall], *span):
                continue
            x, y = {
                BACK: (along, length - away), LEFT: (away, along), RIGHT: (width - away, along)
            }[wall]  # fmt: skip
            placed = self._put(piece, x, y, _YAW[wall])
            if placed:
                self._walls[wall].append(span)
                return placed
        return None

    def hang(self, piece: Piece, low: float, walls=(LEFT, RIGHT, BACK)):
        """Fixes the piece to a wall, its lowest point `low` metres up."""
        width, length, _ = self.size
        for _ in range(_TRIES):
            wall = walls[self.rng.integers(len(walls))]
            along = self._along(wall, piece.width / 2)
            span = (along, low + piece.height / 2, piece.width / 2 + 0.03, piece.height / 2)
            if _meets(self._walls[wall], *span):
                continue
            self._walls[wall].append(span)
            x, y = {BACK: (along, length), LEFT: (0.0, along), RIGHT: (width, along)}[wall]
            return self._put(piece, x, y, _YAW[wall], low, taken=False)
        return None

    def free(self, piece: Piece, distance, spread: float, facing: float = np.pi, taken=True):
        """Stands the piece on the floor in view.

        Args:
          piece: what.
          distance: least and greatest distance from the camera.
          spread: greatest angle (radians) from where the camera looks.
          facing: greatest angle (radians) by which it turns away from facing the camera.
          taken: whether it needs, and takes, the floor (a rug does not).
        """
        for _ in range(_TRIES):
            angle = self.yaw + self.rng.uniform(-spread, spread)
            reach = self.rng.uniform(*distance)
            x, y = self.camera[:2] + reach * np.array([-np.sin(angle), np.cos(angle)])
            yaw = angle + self.rng.uniform(-facing, facing)
            placed = self._put(piece, x, y, yaw, taken=taken)
            if placed:
                return placed
        return None

    def beside(self, piece: Piece, host, x, y, turned: float = 0.0, taken=True):
        """Stands the piece at (x, y) in the frame of `host` (position, yaw), turned against it."""
        position = host[0] + turn(host[1]) @ (x, y, 0)
        return self._put(piece, position[0], position[1], host[1] + turned, taken=taken)

    def on(self, piece: Piece, host, top, jitter: float = 1.0):
        """Stands the piece on a `Piece.tops` of its host (position, yaw)."""
        x, y, z, half_x, half_y = top
        x += self.rng.uniform(-jitter, jitter) * half_x
        y += self.rng.uniform(-jitter, jitter) * half_y
        position = host[0] + turn(host[1]) @ (x, y, z)
        self.scene.add(piece, position, host[1] + self.rng.uniform(-0.2, 0.2) * (half_y > 0))


def _meets(taken, a, b, half_a, half_b) -> bool:
    return any(
        abs(a - other_a) < half_a + other_half_a and abs(b - other_b) < half_b + other_half_b
        for other_a, other_b, other_half_a, other_half_b in taken
    )
