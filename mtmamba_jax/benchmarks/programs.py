"""What the command `benchmark` measures: SS2D on named shapes, a training step, inference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.devices.chips import CHIPS
from mtmamba_jax.devices.sharding import compiler_options, create_mesh, put_batch, split_state
from mtmamba_jax.devices.timing import (
    Timing,
    check_repeats,
    compile_timed,
    program_memory,
    time_calls,
)
from mtmamba_jax.evaluation.evaluate import create_predict_step
from mtmamba_jax.kernels.ss2d import IMPLEMENTATIONS, ss2d
from mtmamba_jax.kernels.ss2d.api import ACTIVATIONS, PLATFORMS, SHAPES
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.messages import check_name
from mtmamba_jax.models.mtmamba import ModelSettings, build
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.tasks import Task
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.state import create_state
from mtmamba_jax.training.step import TrainStep, create_train_step

DTYPES = ("bfloat16", "float32")
FORWARD, BOTH = PASSES = ("forward", "forward + backward")
MODEL_PROGRAMS = ("step", "inference")

Record = dict[str, object]
"""The raw numbers of one program, as JSON holds them."""


def count_exponentials(spec: ArgSpec, passes: str) -> int:
    """Returns the exponentials that cannot be saved, n*k*t*b*h*w*d, once for each pass.

    The decays exp(step A) are too many to keep: the backward pass takes them again.
    """
    s = spec
    return (1 + (passes == BOTH)) * s.n * s.k * s.t * s.b * s.h * s.w * s.d


def count_bytes(inputs: object, passes: str) -> int:
    """Returns the bytes of every input and output, each moved once a pass.

    Args:
      inputs: (the op's arrays, LayerNorm's parameters); y is like x, the first array.
      passes: one of `PASSES`. Backward reads the inputs and dy again and writes a gradient for
        each input.
    """
    read = sum(v.nbytes for v in jax.tree.leaves(inputs))
    y = jax.tree.leaves(inputs)[0].nbytes
    return read + y if passes == FORWARD else 3 * read + 2 * y


def fraction(amount: float, rate: float | None, seconds: float) -> float | None:
    """Returns the share of `seconds` that `amount` takes at `rate`, None for an unknown rate."""
    return None if rate is None else amount / rate / seconds


def platform_implementation(arguments: Sequence[jax.Array]) -> str:
    """Returns which backend an unforced `ss2d` of these arrays takes on this machine.

    Raises:
      NotImplementedError: none can do it.
    """
    names = tuple(PLATFORMS.values())
    branches = {name: functools.partial(jnp.int32, i) for i, name in enumerate(PLATFORMS)}
    chosen = names[int(jax.jit(functools.partial(jax.lax.platform_dependent, **branches))())]
    for name in chosen:
        try:
            jax.eval_shape(functools.partial(ss2d, implementation=name), *arguments)
        except NotImplementedError:
            continue
        return name
    raise NotImplementedError(f"None of {', '.join(chosen)} can do this call.")


def check_ss2d(
    specs: Sequence[str], implementations: Sequence[str], dtype: str, repeats: int
) -> None:
    """Checks what `ss2d_records` is given.

    Raises:
      ValueError: an unknown name (the message gives the nearest and the valid ones), no repeats.
    """
    for name in specs:
        check_name("spec", name, SPECS)
    for name in implementations:
        check_name("implementation", name, IMPLEMENTATIONS)
    check_name("dtype", dtype, DTYPES)
    check_repeats(repeats)


def ss2d_records(
    specs: Sequence[str], implementations: Sequence[str], dtype: str, repeats: int
) -> Iterator[Record]:
    """Yields a record for each spec, pass and implementation, on the first device.

    Timed is the SS2D core after its convolution, `LN(ss2d(x, ...))`, as in the model's extractor
    (Eq. 13), and with its backward pass: the gradients of all eight arrays and of LayerNorm's two.
    A record of a program that could not run holds `error` in place of the numbers.

    Args:
      specs: names of `SPECS`.
      implementations: backends to force, side by side; none is the one the platform picks.
      dtype: of activations and LayerNorm's result; one of `DTYPES`.
      repeats: samples of each time.

    Raises:
      ValueError: an unknown name, or no repeats.
    """
    check_ss2d(specs, implementations, dtype, repeats)
    for name in specs:
        spec = SPECS[name]
        arrays = tuple(
            jnp.asarray(value, dtype if argument in ACTIVATIONS else None)
            for argument, value in zip(SHAPES, spec.arguments(), strict=True)
        )
        graph, norm = nnx.split(TaskLayerNorm(spec.t, spec.d, dtype=jnp.dtype(dtype)))
        names = implementations or [platform_implementation(arrays)]
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
    # As the model is compiled: it matters for what XLA makes of the sums round the kernels.
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


def model_record(what: str, config: ConfigDict, repeats: int) -> Record:
    """Times the whole training step or the whole prediction of a configuration's model.

    The batch is random and already on the devices of `config.mesh`. A step is forward, backward and
    update, one after another from the initial weights.

    Args:
      what: one of `MODEL_PROGRAMS`.
      config: gives the model, the size of images and the batch, `train.batch_size` or
        `eval.batch_size`.
      repeats: samples of the time.

    Raises:
      ValueError: a configuration that cannot work, or no repeats.
    """
    check_name("program", what, MODEL_PROGRAMS)
    check_repeats(repeats)
    tasks = configuration.tasks(config)
    configuration.check(config, [task.name for task in tasks])
    program = {"step": train_program, "inference": _predict_program}[what](config, tasks)
    timing = time_calls(program.call, repeats)
    return {
        "batch_size": program.batch_size,
        "devices": program.devices,
        "state_bytes": program.state_bytes,
        "images_per_second": program.batch_size / timing.median,
    } | _numbers(timing, program.compiling, program.compiled)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program with all that it is called with.

    Attributes:
      batch_size: images of a call.
      devices: that it runs on.
      state_bytes: of weights, and in training the optimizer's state, on the first device.
      compiled: the program.
      compiling: how that came about, of `compile_timed`.
      call: runs it.
    """

    batch_size: int
    devices: int
    state_bytes: int
    compiled: jax.stages.Compiled
    compiling: Record
    call: Callable[[], object]


def train_program(
    config: ConfigDict,
    tasks: Sequence[Task],
    around: Callable[[TrainStep], TrainStep] = lambda step: step,
) -> Program:
    """Returns the training step; each call goes on from the state of the one before.

    Its result is (state, numbers). The batch is random and already on the devices.

    Args:
      config: gives the model, the size of images and the batch.
      tasks: to learn.
      around: makes the step that is called from the compiled one.

    Raises:
      ValueError: a batch that does not split over `config.mesh`.
    """
    size = config.train.batch_size
    mesh = create_mesh(size // config.train.microbatches, **config.mesh)
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    graph, state, layout = create_state(config, tasks, optimizer, mesh)
    batch = put_batch(random_batch(tasks, size, config.data.size, config.data.label_scale), mesh)
    step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
    compiled, compiling = compile_timed(step.lower, state, batch)
    held, step = _bytes_on_first(state), around(compiled)

    def call():
        nonlocal state  # the program takes the old one's memory
        state, numbers = step(state, batch)
        return state, numbers

    return Program(size, mesh.size, held, compiled, compiling, call)


def _predict_program(config: ConfigDict, tasks: Sequence[Task]) -> Program:
    size = config.eval.batch_size
    mesh = create_mesh(size, **config.mesh)
    graph, parameters = build(ModelSettings(**config.model), tasks, config.seed)
    layout = split_state(parameters, mesh)
    parameters = jax.device_put(parameters, layout)
    images = put_batch(random_batch((), size, config.data.size), mesh)["images"]
    step = create_predict_step(graph, mesh, layout)
    compiled, compiling = compile_timed(step.lower, parameters, images)
    held = _bytes_on_first(parameters)
    return Program(size, mesh.size, held, compiled, compiling, lambda: compiled(parameters, images))


def _bytes_on_first(arrays: object) -> int:
    """Returns what the first device of this process holds of arrays."""
    return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(arrays))


def random_batch(
    tasks: Sequence[Task], batch_size: int, size: Sequence[int], label_scale: int = 1
) -> dict:
    """Returns a host batch (`data_pipelines.batch`) of random images and labels, all valid.

    Args:
      tasks: that labels are made for.
      batch_size: b.
      size: height and width of the images.
      label_scale: labels are this many times as high and wide.
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
        if task.label_dtype == "int32":
            label = rng.integers(0, len(task.class_names) or 2, shape)
        else:
            label = rng.uniform(0.5, 9.0, shape)
        if task.label_channels > 1:
            label /= np.linalg.norm(label, axis=-1, keepdims=True)
        batch[task.name] = label.astype(task.label_dtype)
    return batch
