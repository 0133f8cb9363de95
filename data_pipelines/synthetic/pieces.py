"""Pieces: things built from primitives in their own frame, and the scene they are put into."""

from __future__ import annotations

import dataclasses

import numpy as np

from mtmamba_jax.data_pipelines.synthetic import geometry

UPRIGHT = np.eye(3)


def turn(yaw: float) -> np.ndarray:
    """Rotation [3 3] by `yaw` radians about the vertical, counter-clockwise from above."""
    sin, cos = np.sin(yaw), np.cos(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


def tilt(angle: float) -> np.ndarray:
    """Rotation [3 3] about x: a positive angle (radians) leans the top towards the back (+y)."""
    sin, cos = np.sin(angle), np.cos(angle)
    return np.array([[1.0, 0, 0], [0, cos, sin], [0, -sin, cos]])


def towards(direction: np.ndarray) -> np.ndarray:
    """A rotation [3 3] whose local z is the unit `direction` [3]."""
    a, b, c = direction
    x = np.array([c, 0, -a]) if abs(b) < 0.9 else np.array([0, -c, b])
    x /= np.linalg.norm(x)
    y = (b * x[2] - c * x[1], c * x[0] - a * x[2], a * x[1] - b * x[0])
    return np.stack([x, y, direction], axis=1)


@dataclasses.dataclass
class Piece:
    """One thing of one kind.

    Its frame: the origin on the ground under its middle, x to its right, y to its back, z up; it
    faces -y. All lengths in metres.

    Attributes:
      kind: what it is; `labels.KINDS` gives its classes.
      width, depth, height: of the upright box around it.
      seats: points (x, y, z) where a person can sit, facing -y.
      tops: horizontal surfaces (x, y, z, half width, half depth) where things can stand.
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
        """A box; `half` sizes along its axes."""
        self._add(geometry.BOX, centre, half, material, rotation, 0.0, 0)

    def ellipsoid(self, centre, half, material, rotation=UPRIGHT, part=0):
        """An ellipsoid with the semi-axes `half`."""
        self._add(geometry.ELLIPSOID, centre, half, material, rotation, 0.0, part)

    def cylinder(self, centre, radius, half_height, material, rotation=UPRIGHT, taper=0.0):
        """A round column; its top's radius is radius * (1 + taper), its foot's the opposite."""
        half = (radius, radius, half_height)
        self._add(geometry.CYLINDER, centre, half, material, rotation, taper, 0)

    def limb(self, start, end, radius, material, part=0):
        """A capsule of this radius around the segment from start to end."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        length = np.linalg.norm(end - start)
        rotation = towards((end - start) / length)
        centre, shape = (start + end) / 2, length / 2 / radius
        self._add(geometry.CAPSULE, centre, (radius,) * 3, material, rotation, shape, part)

    def trunk(self, centre, half, length, material, rotation=UPRIGHT, part=0):
        """A flattened capsule: semi-axes `half`, its upright middle line 2 * length long."""
        shape = length / half[2]
        self._add(geometry.CAPSULE, centre, half, material, rotation, shape, part)


class Scene:
    """Pieces at their places in the world.

    Attributes:
      kinds: the kind of each object, by object number; the room's six faces come first.
    """

    def __init__(self):
        self.kinds: list[str] = []
        self._rows: list[tuple] = []
        self._objects: list[int] = []
        self._materials: list[np.ndarray] = []

    def add_room(self, size, materials) -> None:
        """The box [0, size] with a material for each face: -x, +x, -y, +y, floor, ceiling.

        Each face is an object: two walls meet in an edge.
        """
        half = np.asarray(size, float) / 2
        kinds = ("wall", "wall", "wall", "wall", "floor", "ceiling")
        for kind, material in zip(kinds, materials, strict=True):
            self._objects.append(len(self.kinds))
            self.kinds.append(kind)
            self._rows.append((geometry.SHELL, half, half, UPRIGHT, 0.0, 0))
            self._materials.append(material.row())

    def add(self, piece: Piece, position, yaw: float = 0.0) -> int:
        """Puts a piece's origin at `position` [3], turned by `yaw`; returns its object number."""
        number, rotation = len(self.kinds), turn(yaw)
        self.kinds.append(piece.kind)
        materials = {id(row[5]): row[5] for row in piece.rows}
        turned = {key: material.turned(rotation).row() for key, material in materials.items()}
        for kind, centre, half, own, shape, material, part in piece.rows:
            centre = rotation @ centre + position
            self._rows.append((kind, centre, half, rotation @ own, shape, part))
            self._objects.append(number)
            self._materials.append(turned[id(material)])
        return number

    def primitives(self) -> geometry.Primitives:
        """All primitives, in the order of the per-primitive arrays below."""
        kind, centre, half, rotation, shape, _ = zip(*self._rows, strict=True)
        return geometry.Primitives(
            kind=np.array(kind),
            centre=np.array(centre, float),
            half=np.array(half, float),
            rotation=np.array(rotation, float),
            shape=np.array(shape, float),
        )

    def objects(self) -> np.ndarray:
        """Object number of each primitive, int32 [p]."""
        return np.array(self._objects, np.int32)

    def parts(self) -> np.ndarray:
        """Human part of each primitive, int32 [p], 0 for anything but a person."""
        return np.array([row[-1] for row in self._rows], np.int32)

    def materials(self) -> np.ndarray:
        """Material row of each primitive, float32 [p m]; see `materials.Material.row`."""
        return np.array(self._materials, np.float32)
