"""Synthetic scenes are repeatable, exactly labelled, disjoint by split and not solved by colour."""

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mtmamba_jax.data_pipelines.synthetic import arrangement, labels
from mtmamba_jax.data_pipelines.synthetic.geometry import Camera, cast
from mtmamba_jax.data_pipelines.synthetic.materials import random_material
from mtmamba_jax.data_pipelines.synthetic.pieces import Piece, Scene
from mtmamba_jax.data_pipelines.synthetic.source import SyntheticScenes
from mtmamba_jax.tasks import table as tasks_lib

SIZE = (96, 128)
SETS = {"nyudv2": tasks_lib.NYUDV2, "pascal_context": tasks_lib.PASCAL_CONTEXT}
COUNT = 24


def scenes(tasks, split="train", size=SIZE, num_examples=COUNT):
    return SyntheticScenes(tasks, size=size, split=split, num_examples=num_examples)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


@pytest.fixture(scope="module", params=SETS)
def tasks(request):
    return SETS[request.param]


@pytest.fixture(scope="module")
def examples(tasks):
    source = scenes(tasks)
    return [source[index] for index in range(COUNT)]


def test_an_example_does_not_depend_on_order_thread_or_pickling(tasks, examples):
    source = pickle.loads(pickle.dumps(scenes(tasks, num_examples=1000)))
    with ThreadPoolExecutor(2) as pool:
        for index, example in zip((5, 3), pool.map(source.__getitem__, (5, 3)), strict=True):
            assert_same(example, examples[index])


def test_examples_keep_the_contract(tasks, examples):
    assert [example["id"] for example in examples[:2]] == ["train/000000", "train/000001"]
    for example in examples:
        assert example.keys() == {"image", "id", *(task.name for task in tasks)}
        assert example["image"].shape == (*SIZE, 3) and example["image"].dtype == np.uint8
        for task in tasks:
            label = example[task.name]
            assert label.shape == (*SIZE, task.label_channels), task.name
            assert label.dtype == task.label_dtype, task.name
            assert np.isfinite(label).all(), task.name
            if task.label_dtype == "int32":
                valid = label[label != task.ignore]
                assert valid.size == 0 or 0 <= valid.min() <= valid.max() < max(task.channels, 2)
                assert task.name == "human_parts" or (label != task.ignore).all(), task.name


def test_normals_have_unit_length(examples):
    for example in examples:
        # float32 rounding of three squares.
        np.testing.assert_allclose(np.linalg.norm(example["normals"], axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("view", [arrangement.room_view, arrangement.people_view])
def test_normals_face_the_viewer_and_agree_with_the_depth_of_neighbouring_pixels(view):
    shares = []
    for seed in range(6):
        setting = view(np.random.default_rng(seed), SIZE)
        hits = cast(setting.scene.primitives(), setting.camera)
        normals = labels.camera_normals(hits, setting.camera)
        x, y = setting.camera.directions()
        rays = np.stack(np.broadcast_arrays(x, y, np.float32(-1)), -1)
        # They face the viewer, up to rounding where a ray grazes a surface.
        assert np.sum(normals * rays, -1).max() < 1e-5
        points = rays * hits.depth[..., None]
        across, down = points[:-1, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, :-1]
        measured = np.cross(down, across)
        measured /= np.linalg.norm(measured, axis=-1, keepdims=True)
        exact = normals[:-1, :-1]
        flat = (hits.primitive[:-1, :-1] == hits.primitive[:-1, 1:]) & (
            hits.primitive[:-1, :-1] == hits.primitive[1:, :-1]
        )
        for neighbour in (normals[:-1, 1:], normals[1:, :-1]):
            flat &= np.sum(exact * neighbour, -1) > 0.9999
        # 1 degree: the points are one pixel (about 1 cm) apart and exact to 1e-6 of their depth.
        angle = np.degrees(np.arccos(np.clip(np.sum(measured * exact, -1), -1, 1)))
        assert angle[flat].max() < 1.0
        shares.append(flat.mean())
    assert np.mean(shares) > 0.5


def test_depth_is_metres_along_the_camera_axis():
    setting = arrangement.room_view(np.random.default_rng(0), SIZE)
    hits = cast(setting.scene.primitives(), setting.camera)
    forward = -setting.camera.axes[2]
    np.testing.assert_allclose(
        hits.depth, (hits.points - setting.camera.position) @ forward, rtol=1e-4, atol=1e-4
    )
    floor = (
        np.array(setting.scene.kinds)[setting.scene.primitives().object[hits.primitive]] == "floor"
    )
    # Points are computed from float32 depths of a few metres.
    np.testing.assert_allclose(hits.points[floor][:, 2], 0, atol=1e-4)


def test_a_ray_parallel_to_the_axes_of_a_box_hits_it():
    scene, material = Scene(), random_material(np.random.default_rng(0))
    scene.add_room((4.0, 5.0, 3.0), [material] * 6)
    block = Piece("box", 1.0, 1.0, 1.0)
    block.box((0, 0, 0.5), (0.5, 0.5, 0.5), material)
    # The centre ray of an odd-sized image is exactly (0, 1, 0), parallel to four faces of each box.
    camera = Camera.look((2.0, 1.0, 0.5), 0.0, 0.0, 1.0, (5, 5))
    assert cast(scene.primitives(), camera).depth[2, 2] == 4.0
    scene.add(block, (2.0, 4.0, 0.0))
    hits = cast(scene.primitives(), camera)
    assert np.isfinite(hits.depth).all() and hits.depth[2, 2] == 2.5
    np.testing.assert_array_equal(hits.normals[2, 2], (0, -1, 0))


@pytest.mark.parametrize("name", ["ellipsoid", "cylinder", "cone", "limb", "trunk"])
def test_hits_of_round_shapes_satisfy_their_equations(name):
    scene, material = Scene(), random_material(np.random.default_rng(0))
    scene.add_room((6.0, 6.0, 4.0), [material] * 6)
    piece = Piece("box", 1.0, 1.0, 1.0)
    {
        "ellipsoid": lambda: piece.ellipsoid((0, 0, 0), (0.5, 0.3, 0.8), material),
        "cylinder": lambda: piece.cylinder((0, 0, 0), 0.4, 0.6, material),
        "cone": lambda: piece.cylinder((0, 0, 0), 0.4, 0.6, material, taper=-0.5),
        "limb": lambda: piece.limb((-0.4, 0, -0.3), (0.4, 0, 0.3), 0.25, material),
        "trunk": lambda: piece.trunk((0, 0, 0), (0.4, 0.25, 0.3), 0.4, material),
    }[name]()
    scene.add(piece, (3.0, 3.0, 2.0))
    hits = cast(scene.primitives(), Camera.look((3.0, 0.5, 2.7), 0.0, -0.25, 0.9, (60, 80)))
    seen = hits.primitive == 6
    x, y, z = np.moveaxis(hits.points[seen] - np.array([3.0, 3.0, 2.0]), -1, 0)
    across = np.clip((0.4 * x + 0.3 * z) / 0.25, -1, 1)
    distance = {
        "ellipsoid": np.sqrt((x / 0.5) ** 2 + (y / 0.3) ** 2 + (z / 0.8) ** 2) - 1,
        "cylinder": np.maximum(np.hypot(x, y) / 0.4, np.abs(z) / 0.6) - 1,
        "cone": np.maximum(np.hypot(x, y) / (0.4 * (1 - 0.5 * z / 0.6)), np.abs(z) / 0.6) - 1,
        "limb": np.sqrt((x - 0.4 * across) ** 2 + y**2 + (z - 0.3 * across) ** 2) / 0.25 - 1,
        "trunk": np.sqrt(
            (x / 0.4) ** 2 + (y / 0.25) ** 2 + ((z - np.clip(z, -0.4, 0.4)) / 0.3) ** 2
        ) - 1,
    }[name]  # fmt: skip
    assert seen.sum() > 300
    # float32 at about 2.5 metres, relative to sizes of about 0.3 metres.
    assert np.abs(distance).max() < 1e-4


def test_edges_are_where_the_object_to_the_right_or_below_differs():
    objects = np.array([[0, 0, 1], [0, 2, 1], [0, 0, 0]])
    expected = [[0, 1, 0], [1, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(labels.boundaries(objects)[..., 0], expected)


def test_edges_cover_every_class_border_and_few_pixels(examples):
    for example in examples:
        classes, edge = example["semseg"][..., 0], example["edge"][..., 0]
        assert edge[:, :-1][classes[:, :-1] != classes[:, 1:]].all()
        assert edge[:-1][classes[:-1] != classes[1:]].all()
    assert 0.04 < np.mean([example["edge"].mean() for example in examples]) < 0.14


def test_human_parts_cover_people_exactly_and_every_part_occurs():
    source, person = scenes(tasks_lib.PASCAL_CONTEXT), tasks_lib.VOC_CLASSES.index("person")
    seen = set()
    for index in range(COUNT):
        example = source[index]
        parts, people = example["human_parts"], example["semseg"] == person
        if people.any():
            np.testing.assert_array_equal(parts > 0, people)
            assert (example["saliency"][people] == 1).all()
            seen |= set(np.unique(parts))
        else:
            assert (parts == 255).all()
    assert seen >= set(range(7))


def test_human_parts_without_people_are_all_ignored():
    assert (labels.human_parts(np.zeros((2, 3), np.int32), 255) == 255).all()


def test_the_most_prominent_object_is_salient_and_the_room_is_not():
    kinds = ["wall", "chair", "sofa", "picture"]
    objects = np.zeros((40, 40), int)
    objects[15:25, 15:25], objects[:6, :], objects[30:, 12:28] = 1, 2, 3
    np.testing.assert_array_equal(labels.saliency(kinds, objects)[..., 0], objects == 1)
    assert not labels.saliency(["wall", "floor"], np.zeros((4, 4), int)).any()


def test_every_kind_has_a_class_in_both_label_spaces():
    for nyudv2, voc in labels.KINDS.values():
        assert nyudv2 in tasks_lib.NYUDV2_CLASSES and voc in tasks_lib.VOC_CLASSES
    assert set(labels.FIXTURES) <= set(labels.KINDS)


def test_many_classes_occur(tasks, examples):
    seen = {int(value) for example in examples for value in np.unique(example["semseg"])}
    assert len(seen) >= (20 if tasks is tasks_lib.NYUDV2 else 8)


def test_people_fill_much_of_pascal_images():
    source, person = scenes(tasks_lib.PASCAL_CONTEXT), tasks_lib.VOC_CLASSES.index("person")
    shares = [(source[index]["semseg"] == person).mean() for index in range(12)]
    assert np.median(shares) > 0.1


def test_splits_share_no_scene():
    sources = [scenes(tasks_lib.NYUDV2, split) for split in ("train", "test")]
    depths = [source[index]["depth"].tobytes() for source in sources for index in range(COUNT)]
    assert len(set(depths)) == len(depths)


def test_the_length_of_a_source_does_not_change_its_examples(tasks, examples):
    assert len(scenes(tasks, num_examples=7)) == 7
    assert_same(scenes(tasks, num_examples=7)[4], examples[4])


def test_the_tasks_do_not_change_the_scene():
    alone = scenes((tasks_lib.SEMSEG_NYUDV2,), num_examples=2)[1]
    assert alone.keys() == {"image", "id", "semseg"}
    full = scenes(tasks_lib.NYUDV2, num_examples=2)[1]
    np.testing.assert_array_equal(alone["image"], full["image"])
    np.testing.assert_array_equal(alone["semseg"], full["semseg"])


def test_colour_alone_does_not_reveal_the_class(tasks):
    """Nearest class mean in RGB, fitted to half of the scenes, hardly beats chance on the rest."""
    source = scenes(tasks, size=(48, 64), num_examples=100)
    examples = [source[index] for index in range(100)]
    colours = np.stack([example["image"] for example in examples]).reshape(2, -1, 3) / 255.0
    for task in tasks:
        if task.name not in ("semseg", "human_parts", "saliency"):
            continue
        seen, held_out = np.stack([example[task.name] for example in examples]).reshape(2, -1)
        counts = [np.bincount(half, minlength=256)[: task.channels] for half in (seen, held_out)]
        present = np.flatnonzero((counts[0] > 100) & (counts[1] > 100))
        means = np.stack([colours[0][seen == c].mean(0) for c in present])
        nearest = np.argmin(((colours[1][:, None] - means) ** 2).sum(-1), axis=1)
        recalls = [(nearest[held_out == c] == k).mean() for k, c in enumerate(present)]
        # Measured on 100 scenes: 0.02 to 0.04 above chance, because surfaces differ in lighting.
        assert np.mean(recalls) < 1 / len(present) + 0.07, task.name


def test_another_size_shows_the_same_scene():
    small = scenes(tasks_lib.NYUDV2, size=(48, 64), num_examples=1)[0]
    large = scenes(tasks_lib.NYUDV2, size=(144, 192), num_examples=1)[0]
    # Every third pixel centre of the larger image is a pixel centre of the smaller one.
    same = large["semseg"][1::3, 1::3] == small["semseg"]
    assert same.mean() > 0.99
    np.testing.assert_allclose(
        large["depth"][1::3, 1::3][same], small["depth"][same], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("size", [(1, 1), (33, 20), (17, 90)])
def test_any_size_works(size, tasks):
    assert scenes(tasks, size=size, num_examples=1)[0]["image"].shape == (*size, 3)


@pytest.mark.parametrize("index", [-1, COUNT])
def test_an_index_out_of_range_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range for {COUNT}"):
        scenes(tasks_lib.NYUDV2)[index]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "tset"}, "Unknown split 'tset'.*Did you mean 'test'.*Valid: train, test"),
        ({"size": (0, 64)}, r"size \(height, width\) of 1 or more, got \(0, 64\)"),
        ({"num_examples": 0}, "num_examples of 1 or more"),
        ({"tasks": tasks_lib.CITYSCAPES}, "no label for task 'semseg' with 19 classes.*Valid"),
        ({"tasks": (tasks_lib.DISPARITY,)}, "depth in metres, not in px"),
    ],
)
def test_invalid_arguments_are_refused_with_the_valid_ones(changed, message):
    arguments = {"tasks": tasks_lib.NYUDV2, "size": SIZE, "split": "train", "num_examples": 1}
    with pytest.raises(ValueError, match=message):
        SyntheticScenes(**(arguments | changed))


def test_a_task_without_a_label_is_refused_with_the_valid_ones():
    albedo = dataclasses.replace(tasks_lib.DEPTH, name="albedo")
    with pytest.raises(ValueError, match=r"no label for task 'albedo'.*semseg, depth"):
        scenes((albedo,))
