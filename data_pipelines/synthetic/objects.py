"""Small objects, animals and things on walls.

Every function draws random sizes and materials. Frames are those of `furniture`: an object faces -y
and the ground is at z = 0. An object for a wall has its back at y = 0 and its lowest point at
z = 0. Lengths are in metres.
"""

import numpy as np

from mtmamba_jax.data_pipelines.synthetic.materials import glowing, random_material
from mtmamba_jax.data_pipelines.synthetic.pieces import Piece, tilt


def pillow(rng: np.random.Generator) -> Piece:
    """Makes a pillow, a flat ellipsoid."""
    half, depth, height = rng.uniform(0.24, 0.3), rng.uniform(0.16, 0.2), rng.uniform(0.06, 0.09)
    piece = Piece("pillow", 2 * half, 2 * depth, 2 * height)
    piece.ellipsoid((0, 0, height), (half, depth, height), random_material(rng), tilt(0.25))
    return piece


def books(rng: np.random.Generator, half_width: float) -> Piece:
    """Makes a row of books along x: striped blocks of different heights."""
    piece = Piece("books", 2 * half_width, 0.2, 0.3)
    left = -half_width
    while left < half_width - 0.08:
        width = min(rng.uniform(0.12, 0.4), half_width - left)
        height = rng.uniform(0.2, 0.29)
        spines = random_material(rng, "stripes", wavelength=0.09)
        piece.box((left + width / 2, 0, height / 2), (width / 2, 0.1, height / 2), spines)
        left += width * rng.choice([1.0, 1.5])
    return piece


def box(rng: np.random.Generator) -> Piece:
    """Makes a carton with a strip of tape."""
    x, y, z = rng.uniform(0.12, 0.28), rng.uniform(0.12, 0.22), rng.uniform(0.1, 0.22)
    piece = Piece("box", 2 * x, 2 * y, 2 * z)
    piece.box((0, 0, z), (x, y, z), random_material(rng))
    piece.box((0, 0, z), (0.03, y + 0.004, z + 0.004), random_material(rng, "plain"))
    return piece


def bottle(rng: np.random.Generator) -> Piece:
    """Makes a bottle with a label."""
    scale = rng.uniform(0.9, 1.5)
    radius, height = 0.045 * scale, 0.12 * scale
    piece = Piece("bottle", 2 * radius, 2 * radius, 2.9 * height)
    glass, label = random_material(rng), random_material(rng)
    piece.cylinder((0, 0, height), radius, height, glass)
    piece.cylinder((0, 0, height), radius * 1.03, height * 0.45, label)
    piece.ellipsoid((0, 0, 2 * height), (radius, radius, radius), glass)
    piece.cylinder((0, 0, 2.45 * height), radius * 0.36, height * 0.45, glass)
    return piece


def potted_plant(rng: np.random.Generator) -> Piece:
    """Makes a plant, whose leaves fan out of a tapered pot."""
    scale = rng.uniform(0.85, 1.25)
    radius, pot = 0.19 * scale, 0.17 * scale
    piece = Piece("potted plant", 4 * radius, 4 * radius, 1.2 * scale)
    clay, leaf = random_material(rng), random_material(rng, "bands", 0.12, contrast=0.7)
    piece.cylinder((0, 0, pot), radius, pot, clay, taper=0.25)
    stem = np.array([0, 0, 2 * pot])
    count = int(rng.integers(9, 14))
    for index in range(count):
        around = 2 * np.pi * (index * 0.382 + rng.uniform(0, 0.1))
        lean = 0.15 + 0.85 * index / count
        sin, cos = np.sin(around), np.cos(around)
        direction = np.array([np.sin(lean) * cos, np.sin(lean) * sin, np.cos(lean)])
        across = np.array([-sin, cos, 0])
        rotation = np.stack([across, np.cross(direction, across), direction], axis=1)
        length = rng.uniform(0.26, 0.38) * scale
        half = (0.085 * scale, 0.02, length)
        piece.ellipsoid(stem + direction * length * 1.05, half, leaf, rotation)
    return piece


def television(rng: np.random.Generator) -> Piece:
    """Makes a flat screen with a bezel on a foot; the picture may glow."""
    half = rng.uniform(0.4, 0.65)
    tall = half * rng.uniform(0.56, 0.66)
    piece = Piece("television", 2 * half, 0.2, 2 * tall + 0.1)
    bezel = random_material(rng, "plain")
    picture = glowing(random_material(rng, "noise", wavelength=0.5), rng.uniform(0, 0.8))
    piece.box((0, 0, tall + 0.1), (half, 0.03, tall), bezel)
    piece.box((0, -0.03, tall + 0.1), (half - 0.035, 0.004, tall - 0.035), picture)
    piece.box((0, 0.01, 0.06), (0.05, 0.02, 0.06), bezel)
    piece.box((0, 0, 0.01), (half * 0.45, 0.1, 0.01), bezel)
    return piece


def table_lamp(rng: np.random.Generator) -> Piece:
    """Makes a lamp: a round foot under a tapered shade that may glow."""
    radius = rng.uniform(0.11, 0.16)
    piece = Piece("lamp", 2 * radius, 2 * radius, 0.5)
    piece.ellipsoid((0, 0, 0.12), (0.07, 0.07, 0.12), random_material(rng))
    shade = glowing(random_material(rng), rng.uniform(0, 0.8))
    piece.cylinder((0, 0, 0.36), radius, 0.12, shade, taper=-0.3)
    return piece


def animal(rng: np.random.Generator, kind: str) -> Piece:
    """Makes a standing "cat" (tail up, pointed ears) or "dog" (long muzzle)."""
    dog = kind == "dog"
    scale = rng.uniform(0.85, 1.15) if dog else rng.uniform(0.65, 0.85)
    piece = Piece(kind, 0.3 * scale, 0.8 * scale, 0.65 * scale)
    fur, other = random_material(rng), random_material(rng)
    body, head = np.array([0, 0, 0.36]) * scale, np.array([0, -0.34, 0.55]) * scale
    piece.trunk(body, np.array([0.1, 0.11, 0.12]) * scale, 0.2 * scale, fur, tilt(np.pi / 2))
    piece.limb(body + np.array([0, -0.22, 0.03]) * scale, head, 0.065 * scale, fur)
    round_head = np.array([0.09, 0.1, 0.09] if dog else [0.11, 0.1, 0.095]) * scale
    piece.ellipsoid(head, round_head, other)
    muzzle = 0.13 if dog else 0.07
    snout = head + np.array([0, -muzzle, -0.03]) * scale
    piece.ellipsoid(snout, np.array([0.045, muzzle * 0.75, 0.04]) * scale, other)
    for side in (-1, 1):
        if dog:
            ear = head + np.array([side * 0.09, 0.0, 0.0]) * scale
            piece.ellipsoid(ear, np.array([0.025, 0.05, 0.09]) * scale, fur)
        else:
            ear = head + np.array([side * 0.07, 0.01, 0.1]) * scale
            piece.cylinder(ear, 0.03 * scale, 0.05 * scale, fur, taper=-0.8)
        for y in (-0.2, 0.2):
            foot = np.array([side * 0.07, y, 0.03]) * scale
            piece.limb(foot, foot + np.array([0, 0, 0.27]) * scale, 0.033 * scale, fur)
    tail = body + np.array([0, 0.3, 0.06]) * scale
    reach = np.array([0, 0.14, 0.12]) if dog else np.array([0, 0.08, 0.34])
    piece.limb(tail, tail + reach * scale, 0.025 * scale, fur)
    return piece


def floor_mat(rng: np.random.Generator) -> Piece:
    """Makes a rug with a border, 1 cm thick."""
    half, depth = rng.uniform(0.6, 1.1), rng.uniform(0.45, 0.75)
    piece = Piece("floor mat", 2 * half, 2 * depth, 0.01)
    piece.box((0, 0, 0.004), (half, depth, 0.004), random_material(rng))
    middle = random_material(rng, wavelength=0.3)
    piece.box((0, 0, 0.005), (half - 0.09, depth - 0.09, 0.005), middle)
    return piece


def _make_framed(rng, kind, half, tall, inside, thickness=0.02) -> Piece:
    piece = Piece(kind, 2 * half, 0.05, 2 * tall)
    border = rng.uniform(0.03, 0.06)
    piece.box((0, -thickness, tall), (half, thickness, tall), random_material(rng))
    piece.box((0, -2 * thickness, tall), (half - border, 0.004, tall - border), inside)
    return piece


def picture(rng: np.random.Generator) -> Piece:
    """Makes a framed abstract painting."""
    paint = random_material(rng, rng.choice(["noise", "dots", "checker"]), wavelength=0.3)
    return _make_framed(rng, "picture", rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.4), paint)


def whiteboard(rng: np.random.Generator) -> Piece:
    """Makes a wide plain board with a tray below it."""
    half, tall = rng.uniform(0.6, 0.95), rng.uniform(0.4, 0.55)
    piece = _make_framed(rng, "whiteboard", half, tall, random_material(rng, "plain"), 0.012)
    piece.box((0, -0.05, 0.0), (half * 0.7, 0.04, 0.012), random_material(rng, "plain"))
    return piece


def door(rng: np.random.Generator) -> Piece:
    """Makes a door: a frame, and a leaf with two panels and a knob."""
    half, height = rng.uniform(0.4, 0.48), rng.uniform(1.95, 2.1)
    piece = Piece("door", 2 * half + 0.16, 0.08, height + 0.08)
    case, leaf, panel = (random_material(rng) for _ in range(3))
    for x in (-half - 0.04, half + 0.04):
        piece.box((x, -0.02, height / 2), (0.04, 0.04, height / 2), case)
    piece.box((0, -0.02, height + 0.04), (half + 0.08, 0.04, 0.04), case)
    piece.box((0, 0, height / 2), (half, 0.02, height / 2), leaf)
    for z in (0.27 * height, 0.74 * height):
        piece.box((0, -0.02, z), (half - 0.12, 0.01, 0.19 * height), panel)
    side = rng.choice([-1, 1])
    piece.ellipsoid((side * (half - 0.07), -0.06, 1.0), (0.035, 0.035, 0.035), case)
    return piece


def window(rng: np.random.Generator) -> Piece:
    """Makes a window: panes between crossed bars above a sill, by day or night."""
    half, tall = rng.uniform(0.45, 0.85), rng.uniform(0.45, 0.65)
    piece = Piece("window", 2 * half + 0.1, 0.12, 2 * tall)
    view = glowing(random_material(rng, "noise", wavelength=2.5), rng.uniform(0, 1.2))
    bar = random_material(rng, "plain")
    piece.box((0, 0, tall), (half, 0.01, tall), view)
    for x in np.linspace(-half, half, int(rng.integers(3, 5))):
        piece.box((x, -0.02, tall), (0.025, 0.025, tall), bar)
    for z in (0.0, tall, 2 * tall):
        piece.box((0, -0.02, z), (half + 0.02, 0.025, 0.025), bar)
    piece.box((0, -0.06, -0.03), (half + 0.05, 0.06, 0.015), bar)
    return piece


def curtain(rng: np.random.Generator, height: float) -> Piece:
    """Makes a curtain, a row of upright folds of cloth `height` metres high."""
    folds = int(rng.integers(3, 6))
    piece = Piece("curtain", folds * 0.11, 0.12, height)
    cloth = random_material(rng, wavelength=0.3)
    for fold in range(folds):
        x = (fold - (folds - 1) / 2) * 0.11
        piece.cylinder((x, -0.04, height / 2), rng.uniform(0.06, 0.075), height / 2, cloth)
    return piece


def blinds(rng: np.random.Generator) -> Piece:
    """Makes closed blinds."""
    half, tall = rng.uniform(0.45, 0.8), rng.uniform(0.45, 0.65)
    piece = Piece("blinds", 2 * half, 0.06, 2 * tall)
    slat, rail = random_material(rng, "plain"), random_material(rng, "plain")
    piece.box((0, 0, tall), (half, 0.015, tall), rail)
    for index in range(9):
        z = (index + 0.5) * 2 * tall / 9
        piece.box((0, -0.04, z), (half, 0.006, tall / 9 * 0.95), slat, tilt(0.5))
    return piece


def shelves(rng: np.random.Generator) -> Piece:
    """Makes two boards on a wall."""
    half, gap = rng.uniform(0.35, 0.6), rng.uniform(0.34, 0.42)
    piece = Piece("shelves", 2 * half, 0.26, 2 * gap)
    board = random_material(rng)
    for z in (0.02, gap):
        piece.box((0, -0.12, z), (half, 0.12, 0.018), board)
        piece.tops.append((0, -0.12, z + 0.018, half * 0.7, 0.0))
    return piece
