"""Ray casting: which primitive each ray meets first, where, and with which surface normal.

Every primitive is a unit shape under an affine map (rotation, half sizes, centre). A ray is taken
to the unit shape's frame without renormalising its direction, so its parameter t stays the same;
with camera rays of z = -1, t is the depth along the camera's axis.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

BOX, ELLIPSOID, CYLINDER, CAPSULE, SHELL = range(5)
"""Unit shapes: [-1, 1]^3; the sphere; x^2 + y^2 <= (1 + taper z)^2 for |z| <= 1 (shape = taper);
the points within 1 of the segment |z| <= shape; a face of the box seen from inside (a room's six
faces are one box, and consecutive primitives -x, +x, -y, +y, -z, +z)."""

NEAREST = 0.05
"""Metres before the camera in which nothing is seen."""


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
      position: float64 [3], metres.
      axes: float64 [3 3], rows are the camera's right, up and back (to the viewer) in the world.
      focal: focal length in pixels.
      size: height and width in pixels.
    """

    position: np.ndarray
    axes: np.ndarray
    focal: float
    size: tuple[int, int]

    @classmethod
    def look(cls, position, yaw: float, pitch: float, field_of_view: float, size) -> Camera:
        """A camera that looks along +y, turned left by `yaw` and up by `pitch` (radians).

        `field_of_view` (radians) is the horizontal one of an image of 4:3 with the same area, so
        that tall and wide images show about as much.
        """
        height, width = size
        across = np.sqrt(height * width * 4 / 3)
        sin, cos, sin_pitch, cos_pitch = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
        forward = np.array([-sin * cos_pitch, cos * cos_pitch, sin_pitch])
        right = np.array([cos, sin, 0.0])
        axes = np.stack([right, np.cross(right, forward), -forward])
        focal = across / 2 / np.tan(field_of_view / 2)
        return cls(np.asarray(position, np.float64), axes, float(focal), (height, width))

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """The rays (x, y, -1) through the pixel centres, camera frame: x [1 w] and y [h 1]."""
        height, width = self.size
        x = (np.arange(width) + 0.5 - width / 2) / self.focal
        y = (height / 2 - np.arange(height) - 0.5) / self.focal
        return x[None].astype(np.float32), y[:, None].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Primitives:
    """All p primitives of a scene, metres.

    Attributes:
      kind: int [p], one of the unit shapes.
      centre: float64 [p 3].
      half: float64 [p 3], half sizes along the local axes.
      rotation: float64 [p 3 3], columns are the local axes in the world.
      shape: float64 [p], the unit shape's own number.
    """

    kind: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    rotation: np.ndarray
    shape: np.ndarray


@dataclasses.dataclass(frozen=True)
class Hits:
    """What the camera sees.

    Attributes:
      depth: float32 [h w], metres along the camera's axis.
      primitive: int32 [h w], number of the primitive hit.
      points: float32 [h w 3], world, metres.
      normals: float32 [h w 3], world, unit, facing the viewer.
    """

    depth: np.ndarray
    primitive: np.ndarray
    points: np.ndarray
    normals: np.ndarray


def _slabs(origin, direction):
    """Entry into the box [-1, 1]^3, and the exits of its three axes."""
    entries, exits = [], []
    for start, along in zip(origin, direction, strict=True):
        # A ray along a face has 0 here; infinity minus infinity would lose it.
        inverse = 1 / (along + np.float32(1e-20))
        middle, half = -start * inverse, np.abs(inverse)
        entries.append(middle - half)
        exits.append(middle + half)
    return np.maximum(np.maximum(entries[0], entries[1]), entries[2]), exits


def _box(origin, direction, shape):
    entry, exits = _slabs(origin, direction)
    exit_ = np.minimum(np.minimum(exits[0], exits[1]), exits[2])
    return np.where(entry <= exit_, entry, np.inf)


def _roots(a, b, c):
    """Both roots of a t^2 + 2 b t + c, NaN where there are none."""
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def _ellipsoid(origin, direction, shape):
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    b = ox * dx + oy * dy + oz * dz
    near, _ = _roots(dx * dx + dy * dy + dz * dz, b, ox * ox + oy * oy + oz * oz - 1)
    return np.where(near == near, near, np.inf)


def _cylinder(origin, direction, taper):
    """The first of the two side hits and the two cap hits: the shape is convex."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    radius, slope = 1 + taper * oz, taper * dz
    sides = _roots(
        dx * dx + dy * dy - slope * slope,
        ox * dx + oy * dy - radius * slope,
        ox * ox + oy * oy - radius * radius,
    )
    best = np.full(np.broadcast(dx, dz).shape, np.inf, np.float32)
    for t in sides:
        np.fmin(best, np.where(np.abs(oz + t * dz) <= 1, t, np.inf), out=best)
    for end in (-1, 1):
        t = (end - oz) / dz
        x, y, limit = ox + t * dx, oy + t * dy, 1 + taper * end
        np.fmin(best, np.where(x * x + y * y <= limit * limit, t, np.inf), out=best)
    return best


def _capsule(origin, direction, length):
    """The endless cylinder's hit if it is between the ends, else that of the nearer end's ball.

    A ray that misses the endless cylinder misses both balls, which lie inside it.
    """
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = np.maximum(dx * dx + dy * dy, np.float32(1e-12))
    side, _ = _roots(a, ox * dx + oy * dy, ox * ox + oy * oy - 1)
    z = oz + side * dz
    end_z = oz - np.where(z > 0, length, -length).astype(np.float32)
    b = ox * dx + oy * dy + end_z * dz
    ball, _ = _roots(a + dz * dz, b, ox * ox + oy * oy + end_z * end_z - 1)
    t = np.where(np.abs(z) <= length, side, ball)
    return np.where((t == t) & (side == side), t, np.inf)


# Each takes the ray (origin, direction) in the unit shape's frame and the shape's number, and
# returns the parameter of the entry, infinite for a miss. Roots of negative numbers and ends that a
# ray never reaches give NaN and infinity, which compare as a miss.
_ENTRIES = {BOX: _box, ELLIPSOID: _ellipsoid, CYLINDER: _cylinder, CAPSULE: _capsule}


def _extent(primitives: Primitives) -> np.ndarray:
    """Half sizes [p 3] of the box around each primitive, in its own axes."""
    reach = np.ones_like(primitives.half)
    tapered = primitives.kind == CYLINDER
    reach[tapered, :2] += np.abs(primitives.shape[tapered, None])
    capsules = primitives.kind == CAPSULE
    reach[capsules, 2] += primitives.shape[capsules]
    return primitives.half * reach


def _rectangles(primitives: Primitives, camera: Camera) -> np.ndarray:
    """Pixel rectangles [p 4] (top, bottom, left, right; ends excluded) that hold each primitive."""
    signs = np.array(list(itertools.product((-1, 1), repeat=3)), np.float64)
    corners = np.einsum("pij,kj,pj->pki", primitives.rotation, signs, _extent(primitives))
    corners = (corners + primitives.centre[:, None] - camera.position) @ camera.axes.T
    depth = -corners[..., 2]
    height, width = camera.size
    near = np.maximum(depth, 1e-6)
    x = corners[..., 0] / near * camera.focal + width / 2
    y = height / 2 - corners[..., 1] / near * camera.focal
    low_high = [y.min(1), y.max(1), x.min(1), x.max(1)]
    limits = (height, height, width, width)
    edges = [np.clip(value, 0, limit) for value, limit in zip(low_high, limits, strict=True)]
    rounded = [np.floor(edges[0]), np.ceil(edges[1]), np.floor(edges[2]), np.ceil(edges[3])]
    rectangles = np.stack(rounded, axis=1).astype(int)
    # A box that reaches behind the camera has no finite projection: look everywhere, or nowhere.
    rectangles[(depth < NEAREST).any(1)] = (0, height, 0, width)
    rectangles[(depth < NEAREST).all(1)] = 0
    return rectangles


@np.errstate(divide="ignore", invalid="ignore")
def cast(primitives: Primitives, camera: Camera) -> Hits:
    """Returns what each pixel's central ray meets first.

    The first six primitives are the room's faces (kind SHELL), so every ray meets something.
    """
    x, y = camera.directions()
    depth = np.full(camera.size, np.inf, np.float32)
    index = np.zeros(camera.size, np.int32)
    # Rows are the unit shapes' axes: maps the world to the unit shapes' frames.
    to_local = np.swapaxes(primitives.rotation, 1, 2) / primitives.half[:, :, None]
    offset = camera.position - primitives.centre
    origins = np.einsum("pij,pj->pi", to_local, offset).astype(np.float32)
    rays = np.einsum("pij,kj->pik", to_local, camera.axes).astype(np.float32)

    along = [r[0] * x + (r[1] * y - r[2]) for r in rays[0]]
    _, exits = _slabs(origins[0], along)
    nearest_wall = np.argmin(exits, axis=0)
    depth[:] = np.min(exits, axis=0)
    index[:] = 2 * nearest_wall + (np.choose(nearest_wall, along) > 0)

    for number, (top, bottom, left, right) in enumerate(_rectangles(primitives, camera)):
        if number < 6 or top >= bottom or left >= right:
            continue
        columns, rows = x[:, left:right], y[top:bottom]
        along = [r[0] * columns + (r[1] * rows - r[2]) for r in rays[number]]
        entry = _ENTRIES[primitives.kind[number]]
        t = entry(origins[number], along, np.float32(primitives.shape[number]))
        window = (slice(top, bottom), slice(left, right))
        nearer = (t < depth[window]) & (t > NEAREST)
        np.copyto(depth[window], t, where=nearer, casting="same_kind")
        np.copyto(index[window], np.int32(number), where=nearer)
    return _surface(primitives, camera, depth, index)


def _surface(primitives: Primitives, camera: Camera, depth, index) -> Hits:
    """Points and normals of the hits, as planes [3 h*w]: twice as fast as [h*w 3]."""
    x, y = camera.directions()
    axes, flat_index = camera.axes.astype(np.float32), index.ravel()
    rays = np.stack([(a * x + (b * y - c)).ravel() for a, b, c in axes.T])
    points = depth.ravel() * rays + camera.position.astype(np.float32)[:, None]

    def gathered(values):
        return values.reshape(len(values), -1).astype(np.float32).T[:, flat_index]

    rotation = gathered(primitives.rotation).reshape(3, 3, -1)
    half, shape, kind = gathered(primitives.half), gathered(primitives.shape)[0], primitives.kind
    kind = kind[flat_index]
    offset = points - gathered(primitives.centre)
    local = np.stack([_dot(rotation[:, axis], offset) for axis in range(3)]) / half
    gradient = _gradient(kind, shape, local) / half
    normals = np.stack([_dot(rotation[axis], gradient) for axis in range(3)])
    normals /= np.sqrt(_dot(normals, normals))
    # The room is seen from inside: its normals, too, face the viewer.
    normals = np.where(_dot(normals, rays) > 0, -normals, normals)
    shaped = (*depth.shape, 3)
    return Hits(depth, index, points.T.reshape(shaped), normals.T.reshape(shaped))


def _dot(first, second):
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _gradient(kind, shape, local) -> np.ndarray:
    """Outward directions [3 m], of any length, at points on the unit shapes, in their frames."""
    gradient = local.copy()
    size = np.abs(local)
    largest = np.maximum(np.maximum(size[0], size[1]), size[2])
    gradient[:, (kind == BOX) | (kind == SHELL)] = 0
    flat = ((kind == BOX) | (kind == SHELL)) & (size == largest)
    gradient[flat] = local[flat]

    z = local[2]
    capsule, cylinder = kind == CAPSULE, kind == CYLINDER
    gradient[2, capsule] = (z - np.clip(z, -shape, shape))[capsule]
    radius = 1 + shape * z
    cap = cylinder & (size[2] * radius > np.hypot(local[0], local[1]))
    side = cylinder & ~cap
    gradient[:2, cap] = 0
    gradient[2, side] = (-shape * radius)[side]
    return gradient


@np.errstate(divide="ignore", invalid="ignore")
def visible(primitives: Primitives, chosen, light: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether the light [3] reaches the points [m 3] past the `chosen` primitives, bool [m]."""
    rays = (points - light.astype(np.float32)).astype(np.float32)
    lit = np.ones(len(points), bool)
    for number in chosen:
        to_local = primitives.rotation[number].T / primitives.half[number][:, None]
        origin = (to_local @ (light - primitives.centre[number])).astype(np.float32)
        along = (rays @ to_local.T.astype(np.float32)).T
        entry = _ENTRIES[primitives.kind[number]]
        t = entry(origin, np.ascontiguousarray(along), np.float32(primitives.shape[number]))
        # The margin keeps a surface from shading itself.
        lit &= ~((t > 0) & (t < 0.995))
    return lit
