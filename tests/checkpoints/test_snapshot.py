"""Copies of a state that are saved beside training."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.checkpoints import snapshot
from mtmamba_jax.checkpoints.background import Background
from mtmamba_jax.checkpoints.snapshot import Snapshots
from mtmamba_jax.devices.sharding import create_mesh, split_state


@pytest.mark.parametrize(("free", "memory"), [(10**9, "device"), (10, "pinned_host")])
@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_a_copy_outlives_the_state_and_is_on_the_host_once(data, fsdp, free, memory, monkeypatch):
    monkeypatch.setattr(snapshot, "_free", lambda device: free)
    mesh = create_mesh(4, data=data, fsdp=fsdp)
    wanted = {"a": {"kernel": np.arange(32.0).reshape(8, 4), "bias": np.arange(3.0)}, "step": 3}
    state = jax.tree.map(jnp.asarray, wanted)
    state = jax.device_put(state, split_state(state, mesh))
    copy = Snapshots().take(state | {"elsewhere": np.arange(2)})
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(state)
    assert all(array.is_deleted() for array in jax.tree.leaves(state))
    jax.tree.map(np.testing.assert_array_equal, copy, wanted | {"elsewhere": np.arange(2)})
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), doubled, wanted)
    kernel = copy["a"]["kernel"]
    copies = data if memory == "device" else 1
    assert len(kernel.addressable_shards) == copies * fsdp
    assert sum(shard.data.nbytes for shard in kernel.addressable_shards) == copies * kernel.nbytes
    assert kernel.sharding.memory_kind == memory


def test_copies_that_are_still_held_take_room(monkeypatch):
    monkeypatch.setattr(snapshot, "_free", lambda device: 250)
    mesh = create_mesh(1)
    state = {"kernel": jnp.arange(32.0)}  # 128 bytes
    state = jax.device_put(state, split_state(state, mesh))

    def place(copy):
        return copy["kernel"].sharding.memory_kind

    snapshots = Snapshots()
    first = snapshots.take(state)
    assert place(first) == "device"
    assert place(snapshots.take(state)) == "pinned_host"
    del first
    assert place(snapshots.take(state)) == "device"


def until_raised(call):
    for _ in range(1000):
        call()
        time.sleep(0.01)


def test_work_is_done_in_order_and_its_error_is_raised_by_a_later_call():
    done, free = [], threading.Event()
    background = Background(most=1)

    def fail():
        raise OSError("full")

    background.give(free.wait)
    background.give(lambda: done.append(1))
    assert done == []  # beside us
    free.set()
    background.wait()
    assert done == [1]
    background.check()
    background.give(fail)
    with pytest.raises(OSError, match="full"):
        until_raised(background.check)


def test_after_work_that_failed_no_other_is_done():
    done, free = [], threading.Event()
    background = Background(most=2)

    def fail():
        free.wait()
        raise OSError("full")

    background.give(fail)
    background.give(lambda: done.append(1))
    free.set()
    for call in (background.wait, background.check, lambda: background.give(print)):
        with pytest.raises(OSError, match="full"):
            call()
    with pytest.raises(OSError, match="full"):
        background.close()
    assert done == []


def test_giving_more_than_may_wait_waits_for_the_first():
    free = threading.Event()
    background = Background(most=1)
    background.give(free.wait)
    background.give(lambda: None)
    third = threading.Thread(target=background.give, args=(lambda: None,))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    free.set()
    third.join()
    background.close()
