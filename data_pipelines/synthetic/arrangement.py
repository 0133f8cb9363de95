"""Arranges scenes and their cameras: whole furnished rooms, and close views of people."""

import dataclasses

import numpy as np
from jaxtyping import Float

from mtmamba_jax.data_pipelines.synthetic import furniture, objects
from mtmamba_jax.data_pipelines.synthetic.geometry import Camera
from mtmamba_jax.data_pipelines.synthetic.people import person
from mtmamba_jax.data_pipelines.synthetic.pieces import Piece, Scene, turn
from mtmamba_jax.data_pipelines.synthetic.rooms import BACK, LEFT, RIGHT, Place, Room


@dataclasses.dataclass(frozen=True)
class Setting:
    """A scene, its camera and the position of its lamp (metres)."""

    scene: Scene
    camera: Camera
    lamp: Float[np.ndarray, "3"]


def _draw_lamp(rng: np.random.Generator, extent) -> Float[np.ndarray, "3"]:
    width, length, height = extent
    place = (rng.uniform(0.2, 0.8) * width, rng.uniform(0.15, 0.7) * length)
    return np.array([*place, height - rng.uniform(0.15, 0.5)])


def _seat_person(room: Room, host: Place, piece: Piece) -> None:
    x, y, z = piece.seats[room.rng.integers(len(piece.seats))]
    sitter = person(room.rng, z)
    room.place_beside(sitter, host, x, y, room.rng.uniform(-0.15, 0.15), occupies=False)


def _add_clutter(room: Room, host: Place | None, piece: Piece, things) -> None:
    """Puts one or two things on the piece's first top, left and right of its middle."""
    if host is None:  # the piece found no place
        return
    count = int(room.rng.integers(1, 3))
    x, y, z, half_x, half_y = piece.tops[0]
    for index in range(count):
        thing = things[room.rng.integers(len(things))]
        middle = x + (index - (count - 1) / 2) * half_x
        room.place_on_top(thing(room.rng), host, (middle, y, z, half_x / 3, half_y))


def _small_books(rng):
    return objects.books(rng, rng.uniform(0.1, 0.2))


def _add_bookcase(room: Room) -> None:
    shelf = furniture.bookshelf(room.rng)
    host = room.place_by_wall(shelf)
    if host:
        for top in shelf.tops:
            if room.rng.random() < 0.85:
                room.place_on_top(objects.books(room.rng, top[3]), host, top, jitter=0.0)


def _furnish_bedroom(room: Room) -> None:
    rng = room.rng
    bed = furniture.bed(rng)
    host = room.place_by_wall(bed)
    if host:
        for top in bed.tops:
            room.place_on_top(objects.pillow(rng), host, top)
        for side in (-1, 1):
            stand = furniture.night_stand(rng)
            x = side * (bed.width / 2 + stand.width / 2 + 0.08)
            place = room.place_beside(stand, host, x, bed.depth / 2 - stand.depth / 2)
            _add_clutter(room, place, stand, (objects.table_lamp, _small_books))
        if rng.random() < 0.3:
            _seat_person(room, host, bed)
    dresser = furniture.dresser(rng)
    place = room.place_by_wall(dresser)
    _add_clutter(room, place, dresser, (objects.television, objects.box, _small_books))
    room.place_by_wall(furniture.cabinet(rng))


def _add_television(room: Room, walls=(LEFT, RIGHT, BACK, BACK)) -> None:
    stand = furniture.cabinet(room.rng)
    host = room.place_by_wall(stand, walls)
    if host and stand.height < 1:
        x, y, z, _, _ = stand.tops[0]
        room.place_on_top(objects.television(room.rng), host, (x, y, z, 0.0, 0.0))


def _furnish_living_room(room: Room) -> None:
    rng = room.rng
    sofa = furniture.sofa(rng)
    host = room.place_by_wall(sofa)
    if host:
        table = furniture.coffee_table(rng)
        place = room.place_beside(table, host, 0, -sofa.depth / 2 - table.depth / 2 - 0.35)
        _add_clutter(room, place, table, (objects.bottle, objects.box, _small_books))
        if rng.random() < 0.5:
            _seat_person(room, host, sofa)
    _add_television(room)
    _add_bookcase(room)
    if rng.random() < 0.5:
        room.place_by_wall(furniture.sofa(rng))


def _add_sofa(room: Room) -> None:
    sofa = furniture.sofa(room.rng)
    host = room.place_on_floor(sofa, (1.9, 3.0), 0.45, 0.6)
    if host and room.rng.random() < 0.4:
        _seat_person(room, host, sofa)


def _add_table(room: Room, distance, sitters: float) -> None:
    rng = room.rng
    table = furniture.table(rng)
    host = room.place_on_floor(table, distance, 0.35, rng.choice([0.2, np.pi]))
    if not host:
        return
    _add_clutter(room, host, table, (objects.bottle, objects.bottle, _small_books, objects.box))
    for side in rng.permutation(4):
        chair = furniture.chair(rng)
        reach = (table.depth if side % 2 == 0 else table.width) / 2 + 0.12
        angle = side * np.pi / 2
        x, y = turn(angle)[:2, 1] * reach
        place = room.place_beside(chair, host, x, y, angle + rng.uniform(-0.2, 0.2), False)
        if place and rng.random() < sitters:
            _seat_person(room, place, chair)


def _furnish_kitchen(room: Room) -> None:
    rng = room.rng
    for _ in range(2):
        counter = furniture.counter(rng)
        _add_clutter(room, room.place_by_wall(counter), counter, (objects.box, objects.bottle))
    room.place_by_wall(furniture.refrigerator(rng))
    room.place_by_wall(furniture.cabinet(rng))
    _add_table(room, (2.2, 3.2), 0.25)


def _furnish_office(room: Room) -> None:
    rng = room.rng
    for _ in range(int(rng.integers(1, 3))):
        desk = furniture.desk(rng)
        host = room.place_by_wall(desk)
        if host:
            _add_clutter(room, host, desk, (objects.television, objects.table_lamp, _small_books))
            chair = furniture.chair(rng)
            yaw = np.pi + rng.uniform(-1, 1)
            place = room.place_beside(chair, host, 0, -desk.depth / 2 - 0.3, yaw)
            if place and rng.random() < 0.4:
                _seat_person(room, place, chair)
    _add_bookcase(room)
    room.hang(objects.whiteboard(rng), 1.0)
    room.place_by_wall(furniture.cabinet(rng))


def _add_extras(room: Room) -> None:
    """Adds what any room may have: a rug, people, lamps, plants, boxes and things on the walls."""
    rng = room.rng
    if rng.random() < 0.5:
        room.place_on_floor(objects.floor_mat(rng), (2.0, 3.5), 0.3, np.pi, occupies=False)
    if rng.random() < 0.7:
        room.place_on_floor(person(rng), (1.8, 3.5), 0.45)
    if rng.random() < 0.4:
        room.place_on_floor(furniture.chair(rng), (1.6, 3.5), 0.5)
    for thing in (furniture.floor_lamp, objects.potted_plant, objects.box, furniture.night_stand):
        if rng.random() < 0.4:
            room.place_by_wall(thing(rng))
    if rng.random() < 0.7:
        room.hang(objects.door(rng), 0.0)
    if rng.random() < 0.75:
        low = rng.uniform(0.85, 1.0)
        thing = objects.blinds if rng.random() < 0.3 else objects.window
        room.hang(thing(rng), low)
    for _ in range(int(rng.integers(0, 3))):
        room.hang(objects.curtain(rng, room.size[2] - 0.15), 0.08)
    if rng.random() < 0.3:
        shelves = objects.shelves(rng)
        host = room.hang(shelves, 1.2)
        if host:
            for top in shelves.tops:
                room.place_on_top(objects.books(rng, 0.2), host, top)
    for _ in range(int(rng.integers(1, 4))):
        room.hang(objects.picture(rng), rng.uniform(1.2, 1.5))


def room_view(rng: np.random.Generator, size: tuple[int, int]) -> Setting:
    """Draws a bedroom, living room, kitchen or office, seen as a whole from its near wall."""
    extent = (rng.uniform(3.2, 5.0), rng.uniform(5.0, 8.5), rng.uniform(2.3, 2.8))
    position = (rng.uniform(0.35, 0.65) * extent[0], rng.uniform(0.2, 0.5), rng.uniform(1.35, 1.7))
    # Looking at a point in the far half keeps the corners and the furniture in view.
    target = rng.uniform(0.25, 0.75) * extent[0]
    yaw = np.arctan2(position[0] - target, 0.7 * extent[1] - position[1])
    pitch = rng.uniform(-0.22, -0.06)
    camera = Camera.look(position, yaw, pitch, np.radians(rng.uniform(66, 78)), size)
    room = Room(rng, extent, position, yaw, clearance=1.0)
    rooms = (_furnish_bedroom, _furnish_living_room, _furnish_kitchen, _furnish_office)
    rooms[rng.integers(4)](room)
    _add_extras(room)
    return Setting(room.scene, camera, _draw_lamp(rng, extent))


def people_view(rng: np.random.Generator, size: tuple[int, int]) -> Setting:
    """Draws a close view of people on a sofa, at a table or standing, with plants and animals."""
    extent = (rng.uniform(3.2, 4.8), rng.uniform(3.2, 4.2), rng.uniform(2.3, 2.9))
    # A camera that looks to one side stands on the other, so that it sees a corner of the room.
    yaw = rng.uniform(-0.4, 0.4)
    x = (0.5 + 0.4 * yaw + rng.uniform(-0.1, 0.1)) * extent[0]
    position = (x, rng.uniform(0.1, 0.3), rng.uniform(1.65, 2.0))
    # A higher camera looks down more, at the group about 1.7 m away and 0.9 m high.
    pitch = np.arctan2(0.9 - position[2], 1.7) + rng.uniform(-0.06, 0.06)
    camera = Camera.look(position, yaw, pitch, np.radians(rng.uniform(54, 62)), size)
    room = Room(rng, extent, position, yaw, clearance=0.9)
    group = rng.random()
    if group < 0.25:
        _add_table(room, (1.8, 2.2), 0.8)
        room.place_on_floor(person(rng), (1.4, 2.4), 0.4, 0.5)
    elif group < 0.65:
        room.place_on_floor(person(rng), (1.45, 1.8), 0.2, 0.5)
    else:
        chair = furniture.chair(rng)
        host = room.place_on_floor(chair, (1.35, 1.7), 0.2, 0.4)
        if host:
            _seat_person(room, host, chair)
    if rng.random() < 0.7:
        room.place_on_floor(person(rng), (1.4, 2.2), 0.45, 0.6)
    for _ in range(2):
        _add_sofa(room)
    things = (
        furniture.chair, objects.potted_plant,
        lambda rng: objects.animal(rng, "dog"), lambda rng: objects.animal(rng, "cat"),
    )  # fmt: skip
    for _ in range(int(rng.integers(2, 5))):
        room.place_on_floor(things[rng.integers(len(things))](rng), (1.4, 2.8), 0.5)
    if rng.random() < 0.5:
        _add_television(room, (BACK,))
    for _ in range(2):
        room.place_by_wall(furniture.sofa(rng))
    for _ in range(int(rng.integers(0, 3))):
        room.place_by_wall(objects.potted_plant(rng))
    room.hang(objects.window(rng), 0.9)
    room.hang(objects.picture(rng), 1.3)
    if rng.random() < 0.4:
        room.hang(objects.door(rng), 0.0)
    return Setting(room.scene, camera, _draw_lamp(rng, extent))
