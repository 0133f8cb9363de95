"""Measures SS2D on named shapes, a training step and inference for the command `benchmark`."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtmamba_jax.benchmarks.kernel_times import profile
from mtmamba_jax.config import Config
from mtmamba_jax.devices.chips import CHIPS
from mtmamba_jax.devices.sharding import compiler_options, create_mesh, put_batch, state_sharding
from mtmamba_jax.devices.timing import Timing, compile_timed, program_memory, time_calls
from mtmamba_jax.evaluation.evaluate import create_predict_step
from mtmamba_jax.kernels.platform_check import local_platform
from mtmamba_jax.kernels.ss2d import IMPLEMENTATIONS, ss2d
from mtmamba_jax.kernels.ss2d.api import ACTIVATIONS, SHAPES, choose_implementation
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.messages import check_name
from mtmamba_jax.models.mtmamba import build
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.state import create_state
from mtmamba_jax.training.step import create_train_step

DTYPES = ("bfloat16", "float32")
FORWARD, BOTH = PASSES = ("forward", "forward + backward")
MODEL_PROGRAMS = ("step", "inference")

Record = dict[str, Any]
"""The measurements of one program, as written to JSON."""


def count_exponentials(spec: ArgSpec, passes: str) -> int:
    """Returns the number of exponentials that cannot be avoided, n*k*t*b*h*w*d per pass.

    The decays exp(step A) do not fit in memory, so the backward pass recomputes them.
    """
    return (1 + (passes == BOTH)) * math.prod(getattr(spec, axis) for axis in "nktbhwd")


def count_bytes(inputs: object, passes: str) -> int:
    """Returns the size of all inputs and outputs in bytes, each moved once per pass.

    The inputs are the op's arrays, first x, and the parameters of LayerNorm; y has the size of x.
    The backward pass reads the inputs and dy again and writes a gradient for each input.
    """
    read = sum(v.nbytes for v in jax.tree.leaves(inputs))
    y = jax.tree.leaves(inputs)[0].nbytes
    return read + y if passes == FORWARD else 3 * read + 2 * y


def fraction(amount: float, rate: float | None, seconds: float) -> float | None:
    """Returns the share of `seconds` that `amount` takes at `rate`, or None if `rate` is None."""
    return None if rate is None else amount / rate / seconds


def default_implementation(arguments: Sequence[jax.Array]) -> str:
    """Returns the name of the backend that `ss2d` chooses for these arrays on this machine.

    Raises:
      NotImplementedError: If no backend supports this call.
    """
    return choose_implementation(local_platform(), arguments)[0]


def check_ss2d(specs: Sequence[str], implementations: Sequence[str], dtype: str) -> None:
    """Checks the arguments of `ss2d_records`.

    Raises:
      ValueError: If a name is unknown; the message suggests the closest and lists the valid ones.
    """
    for name in specs:
        check_name("spec", name, SPECS)
    for name in implementations:
        check_name("implementation", name, IMPLEMENTATIONS)
    check_name("dtype", dtype, DTYPES)


def ss2d_records(
    specs: Sequence[str], implementations: Sequence[str], dtype: str, repeats: int
) -> Iterator[Record]:
    """Yields a record for each spec, pass and implementation, on the first device.

    The timed program is the SS2D core after its convolution, `LN(ss2d(x, ...))`, as in the model's
    feature extractor (Eq. 13), first alone and then with its backward pass: the gradients of all
    eight arrays and of the two parameters of LayerNorm. If a program could not run, its record has
    an `error` instead of measurements.

    Args:
      specs: Names of `SPECS`.
      implementations: Backends to compare. If empty, the default backend of the platform.
      dtype: Dtype of the activations and of the output of LayerNorm, one of `DTYPES`.
      repeats: Number of timing samples.

    Raises:
      ValueError: If a name is unknown.
    """
    check_ss2d(specs, implementations, dtype)
    for name in specs:
        spec = SPECS[name]
        arrays = tuple(
            jnp.asarray(value, dtype if argument in ACTIVATIONS else None)
            for argument, value in zip(SHAPES, spec.arguments(), strict=True)
        )
        graph, norm = nnx.split(TaskLayerNorm(spec.t, spec.d, dtype=jnp.dtype(dtype)))
        names = implementations or [default_implementation(arrays)]
        for passes in PASSES:
            for implementation in names:
                what = {"spec": name, "implementation": implementation, "passes": passes}
                function = functools.partial(_PROGRAMS[passes], graph, implementation)
                try:
                    numbers = _time_ss2d(spec, passes, function, (arrays, norm), repeats)
                except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
                    numbers = {"error": str(error)}
                yield what | {"dtype": dtype} | dataclasses.asdict(spec) | numbers


def _forward(graph, implementation, arrays, norm):
    return nnx.merge(graph, norm)(ss2d(*arrays, implementation=implementation))


def _both(graph, implementation, arrays, norm, dy):
    y, pull = jax.vjp(functools.partial(_forward, graph, implementation), arrays, norm)
    return y, pull(dy)


_PROGRAMS = {FORWARD: _forward, BOTH: _both}


def _time_ss2d(spec, passes, function, inputs, repeats) -> Record:
    x = inputs[0][0]
    dy = (jax.random.normal(jax.random.key(1), x.shape, x.dtype),) if passes == BOTH else ()
    # Compiled with the model's options: they change how XLA compiles the sums around the kernels.
    jitted = jax.jit(function, compiler_options=compiler_options(jax.default_backend()))
    program, compiling = compile_timed(jitted.lower, *inputs, *dy)
    timing = time_calls(lambda: program(*inputs, *dy), repeats)
    chip = CHIPS.get(jax.devices()[0].device_kind)
    exponentials, moved = count_exponentials(spec, passes), count_bytes(inputs, passes)
    return {
        "exponentials": exponentials,
        "bytes": moved,
        "exponential_fraction": fraction(exponentials, chip and chip.exponentials, timing.median),
        "byte_fraction": fraction(moved, chip and chip.bytes, timing.median),
    } | _numbers(timing, compiling, program)


def _numbers(timing: Timing, compiling: Record, program) -> Record:
    return {
        "median_seconds": timing.median,
        "min_seconds": min(timing.seconds),
        "max_seconds": max(timing.seconds),
        "sample_seconds": timing.seconds,
        "calls_per_sample": timing.calls,
        "memory_bytes": program_memory(program),
    } | compiling


def model_record(what: str, config: Config, repeats: int, *, traced: bool = False) -> Record:
    """Times a full training step or a full prediction of a configuration's model.

    The batch is random and already on the devices of `config.mesh`. A training step is the forward
    and backward pass and the update. Consecutive steps start from the initial weights.

    Args:
      what: One of `MODEL_PROGRAMS`.
      config: Sets the model, the image size and the batch size (`train.batch_size` or
        `eval.batch_size`).
      repeats: Number of timing samples.
      traced: Whether to trace one more call, whose kernels are then in the record.

    Raises:
      ValueError: If the configuration is invalid.
    """
    check_name("program", what, MODEL_PROGRAMS)
    create = {"step": _train_program, "inference": _predict_program}[what]
    size, mesh, step, state, batch = create(config, config.tasks.selected)
    program, compiling = compile_timed(step.lower, state, batch)
    state_bytes = _bytes_on_first(state)

    def call():
        nonlocal state
        result = program(state, batch)
        if what == "step":  # the memory of the state is donated to the next state
            state = result[0]
        return result

    timing = time_calls(call, repeats)
    record = {"batch_size": size, "devices": mesh.size, "state_bytes": state_bytes}
    record["images_per_second"] = size / timing.median
    if traced:
        found = profile(call)
        record["span_seconds"] = found.span
        record["kernels"] = [kernel._asdict() for kernel in found.kernels]
    return record | _numbers(timing, compiling, program)


def _train_program(config: Config, tasks: Sequence[Task]) -> tuple:
    size = config.train.batch_size
    mesh = create_mesh(size // config.train.microbatches, **vars(config.mesh))
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    graph, state, layout = create_state(config.model, tasks, config.seed, optimizer, mesh)
    batch = put_batch(random_batch(tasks, size, config.data.size, config.data.label_scale), mesh)
    step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
    return size, mesh, step, state, batch


def _predict_program(config: Config, tasks: Sequence[Task]) -> tuple:
    size = config.eval.batch_size
    mesh = create_mesh(size, **vars(config.mesh))
    graph, parameters = build(config.model, tasks, config.seed)
    layout = state_sharding(parameters, mesh)
    images = put_batch(random_batch((), size, config.data.size), mesh)["images"]
    step = create_predict_step(graph, mesh, layout)
    return size, mesh, step, jax.device_put(parameters, layout), images


def _bytes_on_first(arrays: object) -> int:
    """Returns the size of the arrays' shards on the first device of this process."""
    return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(arrays))


def random_batch(
    tasks: Sequence[Task], batch_size: int, size: Sequence[int], label_scale: int = 1
) -> dict[str, np.ndarray]:
    """Returns a host batch (`data_pipelines.batch`) of random images and labels, all valid.

    `size` is the height and width of the images; labels are `label_scale` times as high and wide.
    """
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.standard_normal((batch_size, *size, 3), np.float32),
        "id": np.array([f"random{i}" for i in range(batch_size)]),
        "size": np.tile(np.asarray(size, np.int32), (batch_size, 1)),
        "mask": np.ones(batch_size, bool),
    }
    for task in tasks:
        shape = (batch_size, *(n * label_scale for n in size), task.label_channels)
        if task.num_classes:
            label = rng.integers(0, task.num_classes, shape)
        else:
            label = rng.uniform(0.5, 9.0, shape)
        if task.label_channels > 1:
            label /= np.linalg.norm(label, axis=-1, keepdims=True)
        batch[task.name] = label.astype(task.label_dtype)
    return batch
