"""Renders what the camera sees as an 8-bit photograph: light, shadows, exposure and noise."""

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from mtmamba_jax.data_pipelines.synthetic import geometry
from mtmamba_jax.data_pipelines.synthetic.geometry import Camera, Hits, Primitives
from mtmamba_jax.data_pipelines.synthetic.materials import texture

# Smallest primitives that cast shadows: product of the two largest half sizes, square metres.
_CASTER_AREA = 0.01


def _shadow_casters(primitives: Primitives, seen: np.ndarray) -> np.ndarray:
    """Returns the numbers of primitives that are large and, to save time, visible themselves."""
    sizes = np.sort(primitives.half, axis=1)
    area = sizes[:, 1] * sizes[:, 2]
    capsules = primitives.kind == geometry.CAPSULE
    area[capsules] *= 1 + primitives.shape[capsules]
    large = area > _CASTER_AREA
    large[:6] = False  # the room
    return np.flatnonzero(large & seen)


def _lit(points, facing, primitives, casters, lamp) -> Float32[np.ndarray, "h w"]:
    """Returns which fraction of the lamp each pixel's point sees.

    Computed at every second pixel and blurred: a real lamp has a size, so its shadows are soft.
    """
    height, width, _ = points.shape
    points, facing = points[::2, ::2], facing[::2, ::2]
    lit = np.zeros(facing.shape, np.float32)
    lit[facing] = geometry.visible(primitives, casters, lamp, points[facing])
    lit = cv2.GaussianBlur(lit, (0, 0), 0.004 * np.sqrt(height * width))
    return cv2.resize(lit, (width, height), interpolation=cv2.INTER_LINEAR)


def _light(hits: Hits, primitives: Primitives, lamp, view, rng) -> Float32[np.ndarray, "h w 3"]:
    """Returns the RGB light that falls on each pixel's point.

    It is the sum of a lamp with shadows and falloff, a softer light from the camera's side (the
    unit vector `view` points there) and ambient light that is stronger from above. Their colours
    and strengths are random.
    """
    to_lamp = lamp.astype(np.float32) - hits.points
    squared = np.sum(to_lamp * to_lamp, axis=-1)
    cosine = np.sum(to_lamp * hits.normals, axis=-1) / np.sqrt(squared)
    seen = np.bincount(hits.primitive.ravel(), minlength=len(primitives.kind)) > 0
    lit = _lit(hits.points, cosine > 0, primitives, _shadow_casters(primitives, seen), lamp)
    direct = np.maximum(cosine, 0) * lit * rng.uniform(0.9, 1.8) / (1.0 + squared * 0.2)

    # From the camera's side, so that round objects darken towards their outline.
    fill = view + rng.normal((0, 0, 0.25), 0.12).astype(np.float32)
    fill /= np.linalg.norm(fill)
    soft = np.maximum(hits.normals @ fill, 0) ** 2 * rng.uniform(0.6, 0.9)
    ambient = rng.uniform(0.2, 0.3) * (1 + 0.5 * hits.normals[..., 2])
    tints = rng.uniform(0.88, 1.06, (3, 3)).astype(np.float32)
    layers = np.stack([direct, soft, ambient], axis=-1).astype(np.float32)
    return layers @ tints


def photograph(
    hits: Hits,
    primitives: Primitives,
    camera: Camera,
    lamp: Float[np.ndarray, "3"],
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "h w 3"]:
    """Renders an RGB image; lights, exposure and noise are random."""
    height, width = hits.depth.shape
    rays = hits.points - camera.position.astype(np.float32)
    slant = -np.sum(rays * hits.normals, axis=-1) / np.linalg.norm(rays, axis=-1)
    footprint = hits.depth / camera.focal / np.maximum(slant, 0.15)
    rows = primitives.material[hits.primitive.ravel()]
    colour, glow = texture(rows, hits.points.reshape(-1, 3), footprint.ravel())
    light = _light(hits, primitives, lamp, camera.axes[2].astype(np.float32), rng)
    radiance = colour.reshape(height, width, 3) * (light + glow.reshape(height, width, 1))
    radiance *= 1 + 0.04 * rng.standard_normal((height, width, 1), np.float32)

    # Automatic exposure: the mean is roughly constant, as with a camera.
    exposure = rng.uniform(0.2, 0.28) / (radiance.mean() + 1e-6)
    photo = cv2.GaussianBlur(radiance * np.float32(exposure), (0, 0), 0.45)
    # A film curve: gamma 2, flattening towards white.
    photo = np.sqrt(np.maximum(photo, 0))
    photo = photo * 1.35 / (1 + 0.35 * photo * photo)
    noise = rng.uniform(0.004, 0.015) * rng.standard_normal(photo.shape, np.float32)
    return np.clip((photo + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
