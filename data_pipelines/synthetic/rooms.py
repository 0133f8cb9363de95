"""A room with methods that place pieces in it: against or on a wall, on the floor, on a piece."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mtmamba_jax.data_pipelines.synthetic.materials import random_material
from mtmamba_jax.data_pipelines.synthetic.pieces import Piece, Scene, turn

LEFT, RIGHT, BACK = "left", "right", "back"
"""The walls at x = 0, x = width and y = length. The wall at the camera, y = 0, stays bare."""

Place = tuple[Float[np.ndarray, "3"], float]
"""Position (metres) and yaw (radians) of a piece."""

_YAW = {BACK: 0.0, LEFT: np.pi / 2, RIGHT: -np.pi / 2}
_TRIES = 12


class Room:
    """A room that is filled piece by piece without collisions.

    Methods that place a piece return its `Place`, or None if no free one was found.

    Args:
      rng: Random generator of materials and places.
      size: Width, length and height in metres.
      camera: Position of the camera in metres.
      yaw: Viewing direction of the camera (radians, counter-clockwise from +y).
      clearance: Distance from the camera within which the floor stays free, metres.
    """

    def __init__(
        self, rng: np.random.Generator, size, camera: Sequence[float], yaw: float, clearance: float
    ):
        self.rng, self.size, self.camera, self.yaw = rng, size, np.asarray(camera), yaw
        self.clearance = clearance
        self.scene = Scene()
        # Occupied rectangles of the floor and of each wall: (centre 1, centre 2, half 1, half 2).
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
        away = np.abs(np.array((x, y)) - self.camera[:2]) - (half_x, half_y)
        gap = np.hypot(*np.maximum(away, 0))
        return gap >= self.clearance and not _overlaps(self._floor, x, y, half_x, half_y)

    def _put(self, piece: Piece, x, y, yaw, z=0.0, occupies=True) -> Place | None:
        half_x, half_y = np.abs(turn(yaw)[:2, :2]) @ (piece.width / 2, piece.depth / 2)
        if occupies:
            if not self._free_floor(x, y, half_x, half_y):
                return None
            self._floor.append((x, y, half_x + 0.03, half_y + 0.03))
        position = np.array([x, y, z])
        self.scene.add(piece, position, yaw)
        return position, yaw

    def _draw_along(self, wall: str, half: float) -> float:
        """Draws a position along a wall for a piece 2 * half wide, not beside the camera."""
        width, length, _ = self.size
        low, high = (0.0, width) if wall == BACK else (self.camera[1] + 0.6, length)
        return self.rng.uniform(low + half + 0.03, max(high - half - 0.03, low + half + 0.031))

    def _at_wall(self, wall: str, along: float, away: float = 0.0) -> tuple[float, float]:
        """Returns x and y of a point along a wall and `away` metres from it."""
        width, length, _ = self.size
        if wall == BACK:
            return along, length - away
        return (away if wall == LEFT else width - away), along

    def place_by_wall(self, piece: Piece, walls=(LEFT, RIGHT, BACK, BACK)) -> Place | None:
        """Places the piece on the floor with its back against one of the walls."""
        for _ in range(_TRIES):
            wall = walls[int(self.rng.integers(len(walls)))]
            along, away = self._draw_along(wall, piece.width / 2), piece.depth / 2 + 0.02
            span = (along, piece.height / 2, piece.width / 2, piece.height / 2)
            if _overlaps(self._walls[wall], *span):
                continue
            if placed := self._put(piece, *self._at_wall(wall, along, away), _YAW[wall]):
                self._walls[wall].append(span)
                return placed
        return None

    def hang(self, piece: Piece, low: float) -> Place | None:
        """Fixes the piece to one of the walls, its lowest point `low` metres up."""
        for _ in range(_TRIES):
            wall = (LEFT, RIGHT, BACK)[self.rng.integers(3)]
            along = self._draw_along(wall, piece.width / 2)
            span = (along, low + piece.height / 2, piece.width / 2 + 0.03, piece.height / 2)
            if _overlaps(self._walls[wall], *span):
                continue
            self._walls[wall].append(span)
            return self._put(piece, *self._at_wall(wall, along), _YAW[wall], low, occupies=False)
        return None

    def place_on_floor(
        self,
        piece: Piece,
        distance: tuple[float, float],
        spread: float,
        facing: float = np.pi,
        occupies: bool = True,
    ) -> Place | None:
        """Places the piece on the floor in view of the camera.

        Args:
          distance: Smallest and largest distance from the camera, metres.
          spread: Largest angle from the viewing direction, radians.
          facing: Largest angle by which it is turned away from the camera, radians.
          occupies: Whether it needs free floor and occupies it; a rug does not.
        """
        for _ in range(_TRIES):
            angle = self.yaw + self.rng.uniform(-spread, spread)
            reach = self.rng.uniform(*distance)
            x, y = self.camera[:2] + reach * np.array([-np.sin(angle), np.cos(angle)])
            yaw = angle + self.rng.uniform(-facing, facing)
            if placed := self._put(piece, x, y, yaw, occupies=occupies):
                return placed
        return None

    def place_beside(
        self, piece: Piece, host: Place, x, y, yaw: float = 0.0, occupies=True
    ) -> Place | None:
        """Places the piece at (x, y) and `yaw` in the frame of `host`, on the floor."""
        position = host[0] + turn(host[1]) @ (x, y, 0)
        return self._put(piece, position[0], position[1], host[1] + yaw, occupies=occupies)

    def place_on_top(self, piece: Piece, host: Place, top: tuple, jitter: float = 1.0) -> None:
        """Places the piece on `top`, one of the `Piece.tops` of its host, near the middle."""
        x, y, z, half_x, half_y = top
        x += self.rng.uniform(-jitter, jitter) * half_x
        y += self.rng.uniform(-jitter, jitter) * half_y
        position = host[0] + turn(host[1]) @ (x, y, z)
        self.scene.add(piece, position, host[1] + self.rng.uniform(-0.2, 0.2) * (half_y > 0))


def _overlaps(occupied, a, b, half_a, half_b) -> bool:
    return any(
        abs(a - other_a) < half_a + other_half_a and abs(b - other_b) < half_b + other_half_b
        for other_a, other_b, other_half_a, other_half_b in occupied
    )
