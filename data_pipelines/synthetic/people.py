"""People with labelled body parts, built from capsules and ellipsoids: standing or sitting."""

import numpy as np
from jaxtyping import Float

from mtmamba_jax.data_pipelines.synthetic.materials import random_material
from mtmamba_jax.data_pipelines.synthetic.pieces import Piece
from mtmamba_jax.tasks.table import HUMAN_PART_CLASSES

HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = (
    HUMAN_PART_CLASSES.index(name)
    for name in ("head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")
)

HIP_HEIGHT = 0.52
"""Height of the hips as a fraction of the body height."""


def _direction(angle: float, outward: float = 0.0) -> Float[np.ndarray, "3"]:
    """Returns a unit vector: 0 is down, positive angles (radians) swing forward (-y) and up."""
    along = np.cos(outward)
    return np.array([np.sin(outward), -np.sin(angle) * along, -np.cos(angle) * along])


def _arm_pose(rng: np.random.Generator, seated: bool):
    """Returns the angles of an arm: upper arm forward and outward, elbow bend, lower arm inward."""
    poses = [
        (rng.uniform(-0.3, 0.3), rng.uniform(0.08, 0.3), rng.uniform(0.0, 0.5), 0.0),  # hanging
        (rng.uniform(0.0, 0.4), rng.uniform(0.1, 0.3), rng.uniform(1.2, 1.7), 0.4),  # holding
        (rng.uniform(-0.1, 0.2), rng.uniform(0.6, 0.8), rng.uniform(0.6, 1.0), 1.3),  # on the hip
        (rng.uniform(1.0, 2.6), rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.9), 0.0),  # pointing
    ]
    shares = (0.1, 0.8, 0.0, 0.1) if seated else (0.65, 0.15, 0.12, 0.08)
    return poses[rng.choice(4, p=shares)]


def _add_head(piece: Piece, rng, height, neck, skin, hair) -> None:
    middle = neck + np.array([0, -0.015, 0.11]) * height / 1.7
    half = np.array([0.11, 0.125, 0.15]) * height / 1.7
    piece.limb(neck - (0, 0, 0.07), middle, 0.06, skin, TORSO)
    piece.ellipsoid(middle, half, skin, part=HEAD)
    # Hair is a slightly larger cap, shifted up and back; long hair reaches the shoulders.
    piece.ellipsoid(middle + np.array([0, 0.028, 0.03]), half * 1.06, hair, part=HEAD)
    if rng.random() < 0.4:
        back = middle + np.array([0, 0.06, -0.06])
        piece.ellipsoid(back, half * (1.1, 0.6, 1.25), hair, part=HEAD)
    nose = middle + np.array([0, -half[1], -0.01])
    piece.ellipsoid(nose, (0.014, 0.022, 0.022), skin, part=HEAD)


def _add_arms(piece: Piece, rng, height, shoulders, seated, sleeve, lower, skin) -> None:
    upper_length, lower_length = 0.175 * height, 0.15 * height
    for side in (-1, 1):
        forward, outward, elbow, inward = _arm_pose(rng, seated)
        start = shoulders + np.array([side * 0.132 * height, 0, 0])
        mirror = np.array([side, 1, 1])
        middle = start + upper_length * _direction(forward, outward) * mirror
        end = middle + lower_length * _direction(forward + elbow, outward - inward) * mirror
        piece.limb(start, middle, 0.046 * height, sleeve, UPPER_ARM)
        piece.limb(middle, end, 0.04 * height, lower, LOWER_ARM)
        hand = end + (end - middle) / lower_length * 0.05
        piece.ellipsoid(hand, (0.06, 0.066, 0.07), skin, part=LOWER_ARM)


def _add_legs(piece: Piece, rng, height, hips, seated, upper, lower, shoe) -> None:
    upper_length, lower_length = 0.245 * height, 0.235 * height
    swing = 0.0 if seated else rng.choice([0.0, rng.uniform(0.1, 0.35)])
    for side in (-1, 1):
        if seated:
            thigh, knee, outward = 1.5 + rng.uniform(-0.08, 0.05), rng.uniform(-1.7, -1.3), 0.12
        else:
            thigh = side * swing
            knee, outward = -rng.uniform(0.0, 0.1) - max(-thigh, 0) * 0.8, 0.04
        mirror = np.array([side, 1, 1])
        start = hips + np.array([side * 0.062 * height, 0, 0])
        middle = start + upper_length * _direction(thigh, outward) * mirror
        end = middle + lower_length * _direction(thigh + knee) * mirror
        piece.limb(start, middle, 0.061 * height, upper, UPPER_LEG)
        piece.limb(middle, end, 0.05 * height, lower, LOWER_LEG)
        foot = end + np.array([0, -0.06, -0.01])
        piece.ellipsoid(foot, (0.065, 0.14, 0.06), shoe, part=LOWER_LEG)


def person(rng: np.random.Generator, seat_height: float | None = None) -> Piece:
    """Makes a person who stands on the origin, or sits on a seat of `seat_height` metres.

    The hips of a seated person are above the origin and the legs point forward (-y).
    """
    seated = seat_height is not None
    height = rng.uniform(1.45, 1.8)
    skin, shoe = random_material(rng, "plain"), random_material(rng, "plain")
    shirt = random_material(rng, rng.choice(["dots", "checker"]), 0.11, contrast=0.6)
    sleeve = random_material(rng, "bands", 0.1, contrast=0.6)
    trousers = random_material(rng, "stripes", 0.1, contrast=0.6)
    sock = random_material(rng, "bands", 0.14, contrast=0.6)
    hair = random_material(rng, "noise", 0.05, contrast=0.6)
    hips = np.array([0, 0, seat_height + 0.05 * height if seated else HIP_HEIGHT * height])
    lean = rng.uniform(-0.05, 0.25) if seated else rng.uniform(-0.03, 0.06)
    shoulders = hips + 0.275 * height * np.array([0, np.sin(lean), np.cos(lean)])

    piece = Piece("person", 0.32 * height, 0.2 * height, shoulders[2] + 0.2 * height)
    spine = (shoulders - hips) / np.linalg.norm(shoulders - hips)
    rotation = np.array([[1.0, 0, 0], [0, spine[2], spine[1]], [0, -spine[1], spine[2]]])
    chest = np.array([0.105, 0.068, 0.062]) * height
    piece.trunk(hips + 0.155 * height * spine, chest, 0.1 * height, shirt, rotation, TORSO)
    piece.ellipsoid(hips, np.array([0.1, 0.075, 0.065]) * height, trousers, part=TORSO)
    across = np.array([0.09 * height, 0, 0])
    piece.limb(shoulders - across, shoulders + across, 0.04 * height, shirt, TORSO)
    _add_head(piece, rng, height, shoulders + 0.065 * height * spine, skin, hair)
    upper_sleeve = shirt if rng.random() < 0.2 else sleeve
    lower_sleeve = upper_sleeve if rng.random() < 0.25 else skin
    _add_arms(piece, rng, height, shoulders, seated, upper_sleeve, lower_sleeve, skin)
    # Long trousers, or shorts with long socks or boots.
    lower_leg = (trousers, sock, sock, shoe)[rng.integers(4)]
    _add_legs(piece, rng, height, hips, seated, trousers, lower_leg, shoe)
    return piece
