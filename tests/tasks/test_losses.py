"""Losses reproduce the official figures and hand-computed cases, and stay finite."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mtmamba_jax.tasks import losses
from mtmamba_jax.tasks import table as tasks

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ALL = (*tasks.PASCAL_CONTEXT, tasks.DEPTH)
ONES = {task.name: 1.0 for task in ALL}


def golden_case():
    """Returns logits, batch and losses of the golden batch of two."""
    with np.load(GOLDEN / "mtmamba_nyudv2.npz") as file:
        logits, batch, expected = {}, {"mask": np.ones(2, bool)}, {"total": file["loss/total"]}
        for task in tasks.NYUDV2:
            logits[task.name] = file[f"output/{task.name}"].transpose(0, 2, 3, 1)
            label = file[f"label/{task.name}"].transpose(0, 2, 3, 1)
            batch[task.name] = label.astype(task.label_dtype)
            expected[task.name] = file[f"loss/{task.name}"]
    return logits, batch, expected


def random_case(seed=0, b=3, h=6, w=5, chosen=ALL):
    """Returns random logits and labels; one pixel in ten is ignored."""
    rng = np.random.default_rng(seed)
    logits, batch = {}, {"mask": np.ones(b, bool)}
    for task in chosen:
        logits[task.name] = rng.normal(size=(b, h, w, task.channels)).astype(np.float32)
        if task.metric == "normals":
            label = rng.normal(size=(b, h, w, 3))
            label /= np.linalg.norm(label, axis=-1, keepdims=True)
        elif task.metric == "depth":
            label = rng.uniform(1, 9, size=(b, h, w, 1))
        else:
            label = rng.integers(0, max(task.channels, 2), size=(b, h, w, 1))
        label[rng.random((b, h, w)) < 0.1] = task.ignore
        batch[task.name] = label.astype(task.label_dtype)
    return logits, batch


@functools.partial(jax.jit, static_argnames=("chosen", "scheme", "reduction"))
def loss(chosen, logits, batch, scheme="log", reduction="image", weights=ONES):
    total, found = losses.multitask_loss(
        chosen, logits, batch, weights=weights, scheme=scheme, reduction=reduction
    )
    return total, {name: task_loss.mean for name, task_loss in found.items()}


def one_image(maps, index):
    return {name: value[index : index + 1] for name, value in maps.items()}


def test_batch_reduction_and_log_scheme_reproduce_the_official_figures():
    logits, batch, expected = golden_case()
    total, means = loss(tasks.NYUDV2, logits, batch, reduction="batch")
    for name, value in {**means, "total": total}.items():
        # float32 means over 12,288 pixels, summed in another order.
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("scheme", losses.SCHEMES)
def test_image_reduction_is_the_mean_of_single_image_runs(scheme):
    logits, batch = random_case()
    total, means = loss(ALL, logits, batch, scheme)
    alone = [
        loss(ALL, one_image(logits, i), one_image(batch, i), scheme, "batch") for i in range(3)
    ]
    # float32 rounding of sums of some tens of terms.
    np.testing.assert_allclose(total, np.mean([one[0] for one in alone]), rtol=1e-5)
    for name, mean in means.items():
        np.testing.assert_allclose(mean, np.mean([one[1][name] for one in alone]), rtol=1e-5)


def test_the_two_reductions_are_different_objectives():
    logits, batch = random_case()
    by_image, by_batch = (
        loss(ALL, logits, batch, reduction=name)[0] for name in ("image", "batch")
    )
    assert abs(by_image - by_batch) > 1e-4


def test_sum_scheme_adds_weighted_losses():
    logits, batch = random_case()
    weights = {task.name: float(index + 1) for index, task in enumerate(ALL)}
    total, means = loss(ALL, logits, batch, "sum", weights=weights)
    # float32 rounding; every image has every label here.
    np.testing.assert_allclose(total, sum(weights[n] * means[n] for n in means), rtol=1e-6)


def hand_values(task, logits, label):
    """Returns the loss of one row of pixels."""
    logits = np.asarray(logits, np.float32)[None, None]
    label = np.asarray(label, task.label_dtype)[None, None]
    batch = {task.name: label, "mask": np.ones(1, bool)}
    return loss((task,), {task.name: logits}, batch, "sum", "batch")[1][task.name]


def test_hand_computed_losses():
    # float32 rounding throughout.
    two = dataclasses.replace(tasks.SALIENCY, loss="cross_entropy")
    np.testing.assert_allclose(
        hand_values(two, [[0, 0], [np.log(3), 0], [5, 5]], [[0], [0], [255]]),
        (np.log(2) + np.log(4 / 3)) / 2,
        rtol=1e-6,
    )
    # One salient pixel of four: it weighs 3/4, the others 1/4.
    np.testing.assert_allclose(
        hand_values(tasks.SALIENCY, [[0, 0]] * 5, [[1], [0], [0], [0], [255]]),
        np.log(2) * (0.75 + 3 * 0.25) / 4,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        hand_values(tasks.EDGE, [[0], [0], [0]], [[1], [0], [255]]),
        np.log(2) * (0.95 + 0.05) / 2,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        hand_values(tasks.DEPTH, [[1.0], [2.0], [0.0]], [[2.0], [4.0], [255.0]]), 1.5, rtol=1e-6
    )
    np.testing.assert_allclose(
        hand_values(tasks.NORMALS, [[0, 0, 5], [3, 4, 0]], [[0, 0, 1], [0, 0, 1]]),
        (0 + 0.6 + 0.8 + 1.0) / 2,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("scheme", "reduction"),
    [
        ("log", "image"),
        ("sum", "batch"),
        pytest.param("log", "batch", marks=pytest.mark.slow),
        pytest.param("sum", "image", marks=pytest.mark.slow),
    ],
)
def test_an_image_without_a_label_adds_no_loss_and_has_no_gradient(scheme, reduction):
    logits, batch = random_case()
    for task in ALL:
        batch[task.name][1] = task.ignore

    def total(logits):
        value, means = loss(ALL, logits, batch, scheme, reduction)
        return value, means

    (value, means), gradients = jax.value_and_grad(total, has_aux=True)(logits)
    kept = {name: array[[0, 2]] for name, array in logits.items()}
    kept_batch = {name: array[[0, 2]] for name, array in batch.items()}
    kept_value, kept_means = loss(ALL, kept, kept_batch, scheme, reduction)
    # The total is still averaged over three images.
    share = 2 / 3 if reduction == "image" else 1.0
    # float32 rounding.
    np.testing.assert_allclose(value, kept_value * share, rtol=1e-5)
    for task in ALL:
        np.testing.assert_allclose(means[task.name], kept_means[task.name], rtol=1e-5)
        gradient = np.asarray(gradients[task.name])
        assert np.isfinite(gradient).all()
        assert not gradient[1].any()
        assert gradient[0].any()


@pytest.mark.parametrize("reduction", list(losses.REDUCTIONS))
def test_a_padded_example_does_not_change_the_loss(reduction):
    logits, batch = random_case()
    expected = loss(ALL, logits, batch, reduction=reduction)
    padded = {name: np.concatenate([a, a[:1]]) for name, a in logits.items()}
    padded_batch = {name: np.concatenate([a, a[:1]]) for name, a in batch.items()}
    padded_batch["mask"][3] = False
    # float32 rounding.
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6),
        loss(ALL, padded, padded_batch, reduction=reduction),
        expected,
    )


@pytest.mark.parametrize("reduction", list(losses.REDUCTIONS))
def test_ignored_labels_give_zero_loss_and_zero_gradient(reduction):
    logits, batch = random_case()
    for task in ALL:
        batch[task.name][:] = task.ignore
    value, gradients = jax.value_and_grad(lambda x: loss(ALL, x, batch, reduction=reduction)[0])(
        logits
    )
    assert value == 0
    assert not any(gradient.any() for gradient in jax.tree.leaves(gradients))


@pytest.mark.parametrize("fill", [0.0, 1e-30, 100.0, -100.0])
@pytest.mark.parametrize("scheme", losses.SCHEMES)
def test_gradients_are_finite_at_zero_and_at_saturated_logits(fill, scheme):
    logits, batch = random_case()
    logits = {name: np.full_like(array, fill) for name, array in logits.items()}
    value, gradients = jax.value_and_grad(lambda x: loss(ALL, x, batch, scheme)[0])(logits)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))


def test_gradients_are_finite_at_a_perfect_prediction():
    chosen = (tasks.DEPTH, tasks.NORMALS)
    logits, batch = random_case(chosen=chosen)
    logits = {name: batch[name] for name in logits}
    value, gradients = jax.value_and_grad(lambda x: loss(chosen, x, batch)[0])(logits)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))


def test_gradients_match_finite_differences():
    chosen = tuple(task for task in ALL if task.loss not in ("l1", "normals_l1"))
    logits, batch = random_case(chosen=chosen, b=2, h=3, w=3)
    # float32 differences over steps of 1e-2: about 1e-3 of the slope. Not for losses with kinks.
    check_grads(
        lambda x: loss(chosen, x, batch)[0], (logits,), order=1, modes="rev", eps=1e-2, rtol=2e-2
    )


def test_an_image_with_one_class_of_saliency_has_a_finite_loss():
    logits, batch = random_case(chosen=[tasks.SALIENCY])
    batch["saliency"][0], batch["saliency"][1] = 1, 0
    value, gradients = jax.value_and_grad(lambda x: loss((tasks.SALIENCY,), x, batch)[0])(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradients["saliency"]).all()


def test_a_valid_label_that_is_no_class_gives_nan():
    logits, batch = random_case(chosen=[tasks.HUMAN_PARTS])
    batch["human_parts"][0, 0, 0] = 7
    assert np.isnan(loss((tasks.HUMAN_PARTS,), logits, batch)[0])


def test_losses_are_float32_for_bfloat16_logits():
    logits, batch = random_case()
    logits = {name: jnp.asarray(array, jnp.bfloat16) for name, array in logits.items()}
    exact = {name: np.asarray(array, np.float32) for name, array in logits.items()}
    for got, wanted in zip(
        jax.tree.leaves(loss(ALL, logits, batch)),
        jax.tree.leaves(loss(ALL, exact, batch)),
        strict=True,
    ):
        assert got.dtype == jnp.float32
        assert got == wanted


def test_the_loss_table_matches_the_tasks():
    table = {task.loss for chosen in tasks.TASK_SETS.values() for task in chosen}
    assert table == set(losses.LOSSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "logs"}, r"Unknown scheme 'logs'. Did you mean 'log'\? Valid: log, sum"),
        ({"reduction": "images"}, r"Unknown reduction 'images'. Did you mean 'image'\?"),
        ({"weights": {"depth": 1.0}}, "Missing in weights: normals. Present: depth"),
    ],
)
def test_unknown_names_and_missing_weights_are_rejected(change, message):
    chosen = (tasks.DEPTH, tasks.NORMALS)
    logits, batch = random_case(chosen=chosen)
    arguments = {"scheme": "log", "reduction": "image", "weights": ONES, **change}
    with pytest.raises(ValueError, match=message):
        losses.multitask_loss(chosen, logits, batch, **arguments)


def test_an_unknown_loss_and_mismatched_shapes_are_rejected():
    logits, batch = random_case(chosen=[tasks.DEPTH])
    with pytest.raises(ValueError, match=r"Unknown loss 'l2'.*Valid: cross_entropy"):
        loss((dataclasses.replace(tasks.DEPTH, loss="l2"),), logits, batch)
    with pytest.raises(ValueError, match=r"\(3, 3, 5\) against \(3, 6, 5\).*Resize the logits"):
        loss((tasks.DEPTH,), {"depth": logits["depth"][:, ::2]}, batch)
    with pytest.raises(ValueError, match=r"wanted logits \[b h w 1\], got shape \(3, 6, 5, 2\)"):
        loss((tasks.DEPTH,), {"depth": np.zeros((3, 6, 5, 2))}, batch)
    with pytest.raises(ValueError, match=r"Missing in batch: mask\. Present: depth"):
        loss((tasks.DEPTH,), logits, {"depth": batch["depth"]})
