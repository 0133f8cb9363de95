"""Furniture that stands on the floor, built from a few boxes, columns and ellipsoids.

Every function draws random sizes and materials. In its frame a piece faces -y, its back is at +y
and the ground at z = 0; lengths are in metres.
"""

import numpy as np

from mtmamba_jax.data_pipelines.synthetic.materials import glowing, random_material
from mtmamba_jax.data_pipelines.synthetic.pieces import Piece, tilt


def _add_legs(piece: Piece, half_width, half_depth, height, thickness, material) -> None:
    for x in (-1, 1):
        for y in (-1, 1):
            centre = (x * (half_width - thickness), y * (half_depth - thickness), height / 2)
            piece.box(centre, (thickness, thickness, height / 2), material)


def chair(rng: np.random.Generator) -> Piece:
    """Makes a chair: a seat on four legs or a column, a leaning back, sometimes arm rests."""
    half, seat = rng.uniform(0.2, 0.26), rng.uniform(0.42, 0.48)
    back = rng.uniform(0.42, 0.6)
    piece = Piece("chair", 2 * half, 2 * half + 0.1, seat + back, seats=[(0, -0.02, seat + 0.02)])
    frame, cloth = random_material(rng), random_material(rng, "checker", 0.16, contrast=0.75)
    piece.box((0, 0, seat), (half, half, 0.03), cloth)
    if rng.random() < 0.7:
        _add_legs(piece, half, half, seat, 0.022, frame)
    else:
        piece.cylinder((0, 0, seat / 2), 0.03, seat / 2, frame)
        piece.cylinder((0, 0, 0.03), 0.24, 0.03, frame, taper=-0.3)
    lean = tilt(0.15)
    up = lean[:, 2]
    foot = np.array([0, half - 0.02, seat])
    if rng.random() < 0.8:
        piece.box(foot + up * (0.55 * back), (half, 0.025, 0.45 * back), cloth, lean)
    else:
        for x in (-0.9, -0.3, 0.3, 0.9):
            middle = foot + up * (0.5 * back) + (x * half, 0, 0)
            piece.box(middle, (0.02, 0.02, back / 2), frame, lean)
        piece.box(foot + up * (0.9 * back), (half, 0.025, 0.1 * back), frame, lean)
    if rng.random() < 0.35:
        for x in (-half, half):
            piece.box((x, 0, seat + 0.22), (0.03, half, 0.02), frame)
            piece.box((x, -half + 0.04, seat + 0.1), (0.02, 0.02, 0.12), frame)
    return piece


def sofa(rng: np.random.Generator) -> Piece:
    """Makes a sofa with one to three places, each with a seat and a back cushion."""
    places = int(rng.choice([1, 2, 3, 3]))
    place, arm = rng.uniform(0.56, 0.68), rng.uniform(0.09, 0.14)
    half, depth, seat = places * place / 2 + arm, rng.uniform(0.4, 0.47), rng.uniform(0.38, 0.44)
    back = seat + rng.uniform(0.45, 0.58)
    piece = Piece("sofa", 2 * half, 2 * depth, back)
    cloth = random_material(rng, "noise", 0.12, contrast=0.75)
    cushion = random_material(rng, "noise", 0.12, contrast=0.75)
    piece.box((0, 0, seat / 2 - 0.03), (half - 0.01, depth, seat / 2 - 0.07), cloth)
    piece.box((0, depth - 0.09, back / 2 + 0.02), (half - 0.02, 0.09, back / 2 - 0.04), cloth)
    for x in (-half + arm, half - arm):
        piece.box((x, 0, (seat + 0.2) / 2), (arm, depth, (seat + 0.2) / 2 - 0.03), cloth)
        top, half_top = (x, 0, seat + 0.17), (arm, 0.05, arm * 0.6)
        piece.trunk(top, half_top, depth - 0.06, cloth, tilt(np.pi / 2))
    for place_index in range(places):
        x = (place_index - (places - 1) / 2) * place
        piece.box((x, -0.08, seat - 0.03), (place / 2 - 0.015, depth - 0.1, 0.06), cushion)
        upright = (x, depth - 0.24, (seat + back) / 2 + 0.03)
        piece.box(upright, (place / 2 - 0.02, 0.07, (back - seat) / 2), cushion, tilt(0.2))
        piece.seats.append((x, -0.02, seat + 0.03))
    return piece


def table(rng: np.random.Generator) -> Piece:
    """Makes a dining table: a rectangular top on four legs or a round one on a column."""
    half, depth, height = rng.uniform(0.5, 0.9), rng.uniform(0.38, 0.5), rng.uniform(0.7, 0.78)
    top, frame = random_material(rng, "wood", 0.1, contrast=0.7), random_material(rng)
    round_top = rng.random() < 0.3
    if round_top:
        half = depth = rng.uniform(0.45, 0.6)
    piece = Piece("dining table", 2 * half, 2 * depth, height)
    if round_top:
        piece.cylinder((0, 0, height - 0.02), half, 0.02, top)
        piece.cylinder((0, 0, height / 2), 0.05, height / 2 - 0.04, frame)
        piece.cylinder((0, 0, 0.03), 0.28, 0.03, frame, taper=-0.4)
    else:
        piece.box((0, 0, height - 0.02), (half, depth, 0.02), top)
        piece.box((0, 0, height - 0.08), (half - 0.06, depth - 0.06, 0.04), frame)
        _add_legs(piece, half - 0.02, depth - 0.02, height - 0.04, rng.uniform(0.025, 0.045), frame)
    piece.tops.append((0, 0, height, half * 0.7, depth * 0.7))
    return piece


def coffee_table(rng: np.random.Generator) -> Piece:
    """Makes a low table with a lower board."""
    half, depth, height = rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.35), rng.uniform(0.36, 0.46)
    piece = Piece("coffee table", 2 * half, 2 * depth, height)
    top, frame = random_material(rng), random_material(rng)
    piece.box((0, 0, height - 0.02), (half, depth, 0.02), top)
    piece.box((0, 0, 0.14), (half - 0.05, depth - 0.05, 0.012), frame)
    _add_legs(piece, half - 0.02, depth - 0.02, height - 0.04, 0.025, frame)
    piece.tops.append((0, 0, height, half * 0.7, depth * 0.6))
    return piece


def desk(rng: np.random.Generator) -> Piece:
    """Makes a desk: a top on a block of drawers at one side and a board at the other."""
    half, depth, height = rng.uniform(0.55, 0.8), rng.uniform(0.3, 0.38), rng.uniform(0.72, 0.78)
    piece = Piece("desk", 2 * half, 2 * depth, height)
    top, body, front = (random_material(rng) for _ in range(3))
    piece.box((0, 0, height - 0.02), (half, depth, 0.02), top)
    side = rng.choice([-1, 1])
    piece.box((-side * (half - 0.03), 0, height / 2 - 0.02), (0.02, depth, height / 2 - 0.02), body)
    block = side * (half - 0.22)
    piece.box((block, 0.02, height / 2), (0.2, depth - 0.03, height / 2 - 0.05), body)
    for row in range(3):
        z = 0.13 + row * (height - 0.16) / 3 + 0.04
        piece.box((block, -depth + 0.04, z), (0.18, 0.015, (height - 0.16) / 6 - 0.012), front)
    piece.tops.append((0, 0, height, half * 0.8, depth * 0.6))
    return piece


def bed(rng: np.random.Generator) -> Piece:
    """Makes a bed: a frame with a headboard (at its back), a mattress and a blanket."""
    half, length, height = rng.uniform(0.5, 0.85), rng.uniform(0.98, 1.05), rng.uniform(0.42, 0.55)
    piece = Piece("bed", 2 * half, 2 * length, rng.uniform(0.8, 1.15))
    frame, sheet, blanket = (random_material(rng) for _ in range(3))
    piece.box((0, 0, height * 0.3), (half, length, height * 0.24), frame)
    piece.box((0, length - 0.03, piece.height / 2), (half, 0.03, piece.height / 2), frame)
    piece.box((0, -0.03, height * 0.77), (half - 0.03, length - 0.05, height * 0.23), sheet)
    cover = rng.uniform(0.55, 0.75)
    middle = -length + cover * length
    piece.box((0, middle, height * 0.8), (half + 0.015, cover * length, height * 0.23), blanket)
    for x in (0.0,) if half < 0.62 else (-0.5 * half, 0.5 * half):
        piece.tops.append((x, length - 0.28, height, 0.0, 0.0))
    piece.seats.append((0, -length + 0.35, height + 0.02))
    return piece


def _add_drawers(piece: Piece, columns: int, rows: int, low: float, front, knob) -> None:
    """Adds a grid of drawer fronts with knobs to the front, above the height `low`."""
    width, height = piece.width / columns, (piece.height - low - 0.03) / rows
    for column in range(columns):
        for row in range(rows):
            x = (column + 0.5) * width - piece.width / 2
            y, z = -piece.depth / 2, low + (row + 0.5) * height
            piece.box((x, y, z), (width / 2 - 0.012, 0.012, height / 2 - 0.012), front)
            side = 0.0 if height < width else (1 if column % 2 == 0 else -1) * (width / 2 - 0.05)
            piece.ellipsoid((x + side, y - 0.025, z), (0.018, 0.018, 0.018), knob)


def _make_chest(rng, kind, width, depth, height, columns, rows) -> Piece:
    piece = Piece(kind, width, depth, height)
    body, front, knob = (random_material(rng) for _ in range(3))
    piece.box((0, 0.01, height / 2), (width / 2, depth / 2 - 0.01, height / 2), body)
    _add_drawers(piece, columns, rows, 0.06, front, knob)
    piece.tops.append((0, 0, height, width * 0.35, depth * 0.25))
    return piece


def cabinet(rng: np.random.Generator) -> Piece:
    """Makes a wardrobe or a sideboard with two or three doors."""
    low = rng.random() < 0.5
    height = rng.uniform(0.7, 0.95) if low else rng.uniform(1.7, 2.1)
    width, depth = rng.uniform(0.8, 1.3), rng.uniform(0.38, 0.55)
    return _make_chest(rng, "cabinet", width, depth, height, 3 if width > 1.1 else 2, 1)


def dresser(rng: np.random.Generator) -> Piece:
    """Makes a chest with two columns of drawers."""
    width, depth, height = rng.uniform(0.9, 1.3), rng.uniform(0.4, 0.5), rng.uniform(0.75, 1.0)
    return _make_chest(rng, "dresser", width, depth, height, 2, int(rng.integers(3, 5)))


def night_stand(rng: np.random.Generator) -> Piece:
    """Makes a small chest with one or two drawers."""
    width, depth, height = rng.uniform(0.4, 0.5), rng.uniform(0.35, 0.42), rng.uniform(0.45, 0.6)
    return _make_chest(rng, "night stand", width, depth, height, 1, int(rng.integers(1, 3)))


def refrigerator(rng: np.random.Generator) -> Piece:
    """Makes a refrigerator with two doors, one above the other, and upright handles."""
    width, depth, height = rng.uniform(0.6, 0.75), rng.uniform(0.6, 0.7), rng.uniform(1.55, 1.85)
    piece = Piece("refrigerator", width, depth, height)
    body, handle = random_material(rng, "plain"), random_material(rng, "plain")
    piece.box((0, 0.02, height / 2), (width / 2, depth / 2 - 0.03, height / 2), body)
    split = height * rng.uniform(0.6, 0.7)
    for low, high in ((0.05, split - 0.01), (split + 0.01, height)):
        middle, half = (low + high) / 2, (high - low) / 2
        piece.box((0, -depth / 2 + 0.02, middle), (width / 2, 0.03, half), body)
        x = -width / 2 + 0.06
        piece.box((x, -depth / 2 - 0.03, middle), (0.012, 0.015, half * 0.6), handle)
    return piece


def counter(rng: np.random.Generator) -> Piece:
    """Makes a kitchen counter: doors under an overhanging top."""
    width, depth, height = rng.uniform(1.2, 1.9), 0.6, rng.uniform(0.86, 0.92)
    piece = _make_chest(rng, "counter", width, depth, height, int(rng.integers(3, 5)), 1)
    half = (width / 2 + 0.02, depth / 2 + 0.03, 0.02)
    piece.box((0, -0.01, height + 0.02), half, random_material(rng))
    piece.tops = [(0, 0, height + 0.04, width * 0.4, depth * 0.3)]
    return piece


def bookshelf(rng: np.random.Generator) -> Piece:
    """Makes a bookshelf, whose `tops` are the boards, for rows of books."""
    width, depth, height = rng.uniform(0.7, 1.1), 0.3, rng.uniform(1.2, 2.0)
    piece = Piece("bookshelf", width, depth, height)
    frame, back = random_material(rng), random_material(rng)
    boards = int(height / 0.38)
    for x in (-width / 2, width / 2):
        piece.box((x, 0, height / 2), (0.02, depth / 2, height / 2), frame)
    piece.box((0, depth / 2 - 0.01, height / 2), (width / 2, 0.01, height / 2), back)
    for board in range(boards + 1):
        z = 0.03 + board * (height - 0.05) / boards
        piece.box((0, 0, z), (width / 2, depth / 2, 0.015), frame)
        if board < boards:
            piece.tops.append((0, 0, z + 0.015, width / 2 - 0.03, 0.0))
    return piece


def floor_lamp(rng: np.random.Generator) -> Piece:
    """Makes a lamp: a foot, a pole and a tapered shade that may glow."""
    height, radius = rng.uniform(1.35, 1.7), rng.uniform(0.16, 0.24)
    piece = Piece("lamp", 2 * radius, 2 * radius, height)
    frame, shade = random_material(rng, "plain"), glowing(random_material(rng), rng.uniform(0, 0.8))
    piece.cylinder((0, 0, 0.02), 0.15, 0.02, frame)
    piece.cylinder((0, 0, height / 2), 0.02, height / 2, frame)
    piece.cylinder((0, 0, height - 0.15), radius, 0.15, shade, taper=-0.25)
    return piece
