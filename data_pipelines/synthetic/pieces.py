"""Pieces, objects built from primitives in their own frame, and the scene they are added to."""

import dataclasses

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from mtmamba_jax.data_pipelines.synthetic import geometry

UPRIGHT = np.eye(3)


def turn(yaw: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation by `yaw` radians about z, counter-clockwise seen from above."""
    sin, cos = np.sin(yaw), np.cos(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


def tilt(angle: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation about x; a positive angle (radians) leans the top to the back (+y)."""
    sin, cos = np.sin(angle), np.cos(angle)
    return np.array([[1.0, 0, 0], [0, cos, sin], [0, -sin, cos]])


def towards(direction: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Returns a rotation that maps z to a unit vector."""
    a, b, c = direction
    x = np.array([c, 0, -a]) if abs(b) < 0.9 else np.array([0, -c, b])
    x /= np.linalg.norm(x)
    y = (b * x[2] - c * x[1], c * x[0] - a * x[2], a * x[1] - b * x[0])
    return np.stack([x, y, direction], axis=1)


@dataclasses.dataclass
class Piece:
    """An object.

    In its frame, the origin is on the ground below its centre, x points to its right, y to its back
    and z up; it faces -y. All lengths are in metres.

    Attributes:
      kind: Kind of object, a key of `labels.KINDS`.
      width, depth, height: Size of its bounding box.
      seats: Points (x, y, z) where a person can sit, facing -y.
      tops: Horizontal surfaces (x, y, z, half width, half depth) where other objects can stand.
      rows: Its primitives.
    """

    kind: str
    width: float
    depth: float
    height: float
    seats: list = dataclasses.field(default_factory=list)
    tops: list = dataclasses.field(default_factory=list)
    rows: list = dataclasses.field(default_factory=list)

    def _add(self, kind, centre, half, material, rotation, shape, part):
        self.rows.append((kind, np.asarray(centre, float), half, rotation, shape, material, part))

    def box(self, centre, half, material, rotation=UPRIGHT):
        """Adds a box with half sizes `half` along its axes."""
        self._add(geometry.BOX, centre, half, material, rotation, 0.0, 0)

    def ellipsoid(self, centre, half, material, rotation=UPRIGHT, part=0):
        """Adds an ellipsoid with semi-axes `half`."""
        self._add(geometry.ELLIPSOID, centre, half, material, rotation, 0.0, part)

    def cylinder(self, centre, radius, half_height, material, rotation=UPRIGHT, taper=0.0):
        """Adds a column of radius * (1 + taper) at the top and radius * (1 - taper) at the foot."""
        half = (radius, radius, half_height)
        self._add(geometry.CYLINDER, centre, half, material, rotation, taper, 0)

    def limb(self, start, end, radius, material, part=0):
        """Adds a capsule around the segment from `start` to `end`."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        length = np.linalg.norm(end - start)
        rotation = towards((end - start) / length)
        centre, shape = (start + end) / 2, length / 2 / radius
        self._add(geometry.CAPSULE, centre, (radius,) * 3, material, rotation, shape, part)

    def trunk(self, centre, half, length, material, rotation=UPRIGHT, part=0):
        """Adds a flattened upright capsule: semi-axes `half`, axis of length 2 * `length`."""
        shape = length / half[2]
        self._add(geometry.CAPSULE, centre, half, material, rotation, shape, part)


class Scene:
    """A room and the pieces in it.

    Attributes:
      kinds: Kind of each object, by object number. The room's six faces come first.
    """

    def __init__(self):
        self.kinds: list[str] = []
        self._rows: list[tuple] = []

    def add_room(self, size, materials) -> None:
        """Adds the room [0, size], with a material for each face: -x, +x, -y, +y, floor, ceiling.

        Each face is an object, so that there is an edge where two walls meet.
        """
        half = np.asarray(size, float) / 2
        kinds = ("wall", "wall", "wall", "wall", "floor", "ceiling")
        for kind, material in zip(kinds, materials, strict=True):
            number, row = len(self.kinds), material.row()
            self.kinds.append(kind)
            self._rows.append((geometry.SHELL, half, half, UPRIGHT, 0.0, 0, number, row))

    def add(self, piece: Piece, position: ArrayLike, yaw: float = 0.0) -> None:
        """Adds a piece with its origin at `position` (metres), turned by `yaw` (radians)."""
        number, rotation = len(self.kinds), turn(yaw)
        self.kinds.append(piece.kind)
        materials = {id(row[5]): row[5] for row in piece.rows}
        turned = {key: material.rotated(rotation).row() for key, material in materials.items()}
        for kind, centre, half, own, shape, material, part in piece.rows:
            place = (rotation @ centre + position, half, rotation @ own)
            self._rows.append((kind, *place, shape, part, number, turned[id(material)]))

    def primitives(self) -> geometry.Primitives:
        """Returns all primitives, in the order in which they were added."""
        types = (int, float, float, float, float, np.int32, np.int32, np.float32)
        columns = zip(*self._rows, strict=True)
        return geometry.Primitives(*map(np.array, columns, types))
