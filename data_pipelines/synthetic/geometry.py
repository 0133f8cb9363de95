"""Casts rays: finds the primitive that each ray hits first, the point and the surface normal.

Every primitive is a unit shape under an affine map (rotation, half sizes, centre). Rays are mapped
to the unit shape's frame without normalising their direction, so the ray parameter t is the same
in both frames. Camera rays have z = -1, so t is the depth along the camera's axis.
"""

import dataclasses
import itertools
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32
from numpy.typing import ArrayLike

BOX, ELLIPSOID, CYLINDER, CAPSULE, SHELL = range(5)
"""Unit shapes, some with a parameter `shape`.

BOX is [-1, 1]^3. ELLIPSOID is the unit sphere. CYLINDER is x^2 + y^2 <= (1 + shape z)^2 for
|z| <= 1, where `shape` is the taper. CAPSULE is the points within distance 1 of the segment
|z| <= shape on the z axis. SHELL is one face of a room, a box seen from inside: the room's six
faces -x, +x, -y, +y, -z, +z are the first six primitives.
"""

NEAREST = 0.05
"""Near clipping distance of the camera, metres."""


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
      position: Position in the world, metres.
      axes: The camera's right, up and back (towards the viewer) in the world, as rows.
      focal: Focal length in pixels.
      size: Height and width in pixels.
    """

    position: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]
    focal: float
    size: tuple[int, int]

    @classmethod
    def look(
        cls, position: ArrayLike, yaw: float, pitch: float, view_angle: float, size: tuple[int, int]
    ) -> Self:
        """Creates a camera that looks along +y, turned left by `yaw` and up by `pitch`, radians.

        `view_angle` is the horizontal field of view (radians) of a 4:3 image with the same area,
        so that tall and wide images show about as much.
        """
        across = np.sqrt(size[0] * size[1] * 4 / 3)
        sin, cos, sin_pitch, cos_pitch = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
        forward = np.array([-sin * cos_pitch, cos * cos_pitch, sin_pitch])
        right = np.array([cos, sin, 0.0])
        axes = np.stack([right, np.cross(right, forward), -forward])
        focal = across / 2 / np.tan(view_angle / 2)
        return cls(np.asarray(position, np.float64), axes, float(focal), size)

    def directions(self) -> tuple[Float32[np.ndarray, "1 w"], Float32[np.ndarray, "h 1"]]:
        """Returns x and y of the rays (x, y, -1) through the pixel centres, in its own frame."""
        height, width = self.size
        x = (np.arange(width) + 0.5 - width / 2) / self.focal
        y = (height / 2 - np.arange(height) - 0.5) / self.focal
        return x[None].astype(np.float32), y[:, None].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Primitives:
    """All primitives of a scene.

    Attributes:
      kind: Unit shape.
      centre: Centre in the world, metres.
      half: Half sizes along the local axes, metres.
      rotation: The local axes in the world, as columns.
      shape: Parameter of the unit shape.
      part: Human part, 0 for anything but people.
      object: Number of the object that it belongs to.
      material: `materials.Material.row` of its material.
    """

    kind: Int[np.ndarray, " p"]
    centre: Float[np.ndarray, "p 3"]
    half: Float[np.ndarray, "p 3"]
    rotation: Float[np.ndarray, "p 3 3"]
    shape: Float[np.ndarray, " p"]
    part: Int32[np.ndarray, " p"]
    object: Int32[np.ndarray, " p"]
    material: Float32[np.ndarray, "p 20"]


@dataclasses.dataclass(frozen=True)
class Hits:
    """What the camera sees.

    Attributes:
      depth: Depth along the camera's axis, metres.
      primitive: Number of the primitive that is hit.
      points: Points in the world, metres.
      normals: Unit normals in the world, facing the viewer.
    """

    depth: Float32[np.ndarray, "h w"]
    primitive: Int32[np.ndarray, "h w"]
    points: Float32[np.ndarray, "h w 3"]
    normals: Float32[np.ndarray, "h w 3"]


def _slabs(origin, direction):
    """Returns where a ray enters the box [-1, 1]^3 and where it leaves each of the three slabs."""
    entries, exits = [], []
    for start, along in zip(origin, direction, strict=True):
        # Not 1 / 0 for a ray along a face: infinity minus infinity would be NaN.
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
    """Returns both roots of a t^2 + 2 b t + c, NaN if there are none."""
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def _ellipsoid(origin, direction, shape):
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    b = ox * dx + oy * dy + oz * dz
    near, _ = _roots(dx * dx + dy * dy + dz * dz, b, ox * ox + oy * oy + oz * oz - 1)
    return np.where(near == near, near, np.inf)


def _cylinder(origin, direction, taper):
    """Returns the first of the hits of the side (two) and of the caps (two): it is convex."""
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
    """Returns the hit of the infinite cylinder if it is between the ends, else of the nearer ball.

    A ray that misses the infinite cylinder also misses the balls at the ends, which lie inside it.
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


# Each function takes a ray (origin, direction) in the unit shape's frame and the shape's parameter,
# and returns t of the entry, infinite for a miss. Roots of negative numbers and caps that a ray
# never reaches give NaN and infinity, which compare as a miss.
_ENTRIES = {BOX: _box, ELLIPSOID: _ellipsoid, CYLINDER: _cylinder, CAPSULE: _capsule}


def _extent(primitives: Primitives) -> Float[np.ndarray, "p 3"]:
    """Returns the half sizes of each primitive's bounding box along its own axes."""
    reach = np.ones_like(primitives.half)
    tapered = primitives.kind == CYLINDER
    reach[tapered, :2] += np.abs(primitives.shape[tapered, None])
    capsules = primitives.kind == CAPSULE
    reach[capsules, 2] += primitives.shape[capsules]
    return primitives.half * reach


def _rectangles(primitives: Primitives, camera: Camera) -> Int[np.ndarray, "p 4"]:
    """Returns the pixels [top, bottom) x [left, right) that each primitive can be seen in."""
    signs = np.array(list(itertools.product((-1, 1), repeat=3)), np.float64)
    corners = np.einsum("pij,kj,pj->pki", primitives.rotation, signs, _extent(primitives))
    corners = (corners + primitives.centre[:, None] - camera.position) @ camera.axes.T
    depth = -corners[..., 2]
    height, width = camera.size
    near = np.maximum(depth, 1e-6)
    x = corners[..., 0] / near * camera.focal + width / 2
    y = height / 2 - corners[..., 1] / near * camera.focal
    edges = [np.floor(y.min(1)), np.ceil(y.max(1)), np.floor(x.min(1)), np.ceil(x.max(1))]
    limits = (height, height, width, width)
    rectangles = np.clip(np.stack(edges, axis=1), 0, limits).astype(int)
    # A box that is partly behind the camera has no finite projection: test all pixels, or none.
    rectangles[(depth < NEAREST).any(1)] = (0, height, 0, width)
    rectangles[(depth < NEAREST).all(1)] = 0
    return rectangles


@np.errstate(divide="ignore", invalid="ignore")
def cast(primitives: Primitives, camera: Camera) -> Hits:
    """Returns what the ray through each pixel's centre hits first.

    The first six primitives are the room's faces (kind SHELL), so every ray hits something.
    """
    x, y = camera.directions()
    # Maps from the world to the unit shapes' frames.
    to_local = np.swapaxes(primitives.rotation, 1, 2) / primitives.half[:, :, None]
    offset = camera.position - primitives.centre
    origins = np.einsum("pij,pj->pi", to_local, offset).astype(np.float32)
    rays = np.einsum("pij,kj->pik", to_local, camera.axes).astype(np.float32)

    along = [r[0] * x + (r[1] * y - r[2]) for r in rays[0]]
    _, exits = _slabs(origins[0], along)
    nearest_wall = np.argmin(exits, axis=0)
    depth = np.min(exits, axis=0)
    index = (2 * nearest_wall + (np.choose(nearest_wall, along) > 0)).astype(np.int32)

    for number, (top, bottom, left, right) in enumerate(_rectangles(primitives, camera)):
        if number < 6 or top >= bottom or left >= right:
            continue
        columns, rows = x[:, left:right], y[top:bottom]
        along = [r[0] * columns + (r[1] * rows - r[2]) for r in rays[number]]
        entry = _ENTRIES[int(primitives.kind[number])]
        t = entry(origins[number], along, np.float32(primitives.shape[number]))
        window = (slice(top, bottom), slice(left, right))
        nearer = (t < depth[window]) & (t > NEAREST)
        np.copyto(depth[window], t, where=nearer, casting="same_kind")
        np.copyto(index[window], np.int32(number), where=nearer)
    return _surface(primitives, camera, depth, index)


def _surface(primitives: Primitives, camera: Camera, depth, index) -> Hits:
    """Computes points and normals of the hits as [3 h*w], which is twice as fast as [h*w 3]."""
    x, y = camera.directions()
    axes, flat_index = camera.axes.astype(np.float32), index.ravel()
    rays = np.stack([(a * x + (b * y - c)).ravel() for a, b, c in axes.T])
    points = depth.ravel() * rays + camera.position.astype(np.float32)[:, None]

    def gather(values):
        return values.reshape(len(values), -1).astype(np.float32).T[:, flat_index]

    rotation = gather(primitives.rotation).reshape(3, 3, -1)
    half, shape = gather(primitives.half), gather(primitives.shape)[0]
    kind = primitives.kind[flat_index]
    offset = points - gather(primitives.centre)
    local = np.stack([_dot(rotation[:, axis], offset) for axis in range(3)]) / half
    gradient = _gradient(kind, shape, local) / half
    normals = np.stack([_dot(rotation[axis], gradient) for axis in range(3)])
    normals /= np.sqrt(_dot(normals, normals))
    # The room is seen from inside: its normals must face the viewer too.
    normals = np.where(_dot(normals, rays) > 0, -normals, normals)
    shaped = (*depth.shape, 3)
    return Hits(depth, index, points.T.reshape(shaped), normals.T.reshape(shaped))


def _dot(first, second):
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _gradient(kind, shape, local) -> np.ndarray:
    """Returns outward vectors [3 m] of any length at points on the unit shapes, in their frames."""
    gradient = local.copy()
    size = np.abs(local)
    largest = np.maximum(np.maximum(size[0], size[1]), size[2])
    cuboid = (kind == BOX) | (kind == SHELL)
    gradient[:, cuboid] = 0
    flat = cuboid & (size == largest)
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
def visible(
    primitives: Primitives,
    casters: Int[np.ndarray, " k"],
    light: Float[np.ndarray, "3"],
    points: Float32[np.ndarray, "m 3"],
) -> Bool[np.ndarray, " m"]:
    """Returns whether the light at `light` reaches each point past the primitives `casters`."""
    rays = (points - light.astype(np.float32)).astype(np.float32)
    lit = np.ones(len(points), bool)
    for number in casters:
        to_local = primitives.rotation[number].T / primitives.half[number][:, None]
        origin = (to_local @ (light - primitives.centre[number])).astype(np.float32)
        along = (rays @ to_local.T.astype(np.float32)).T
        entry = _ENTRIES[int(primitives.kind[number])]
        t = entry(origin, np.ascontiguousarray(along), np.float32(primitives.shape[number]))
        # The margin prevents a surface from shadowing itself.
        lit &= ~((t > 0) & (t < 0.995))
    return lit
