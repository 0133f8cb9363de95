"""What the command `plan` finds: whether a program fits devices that are not here, what it takes.

The program is that of training or prediction, lowered from shapes and compiled for the topology.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.benchmarks.programs import MODEL_PROGRAMS, Record, random_batch
from mtmamba_jax.devices.sharding import create_mesh, on_device, split_state
from mtmamba_jax.devices.timing import program_memory
from mtmamba_jax.evaluation.evaluate import create_predict_step
from mtmamba_jax.messages import check_name
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_build
from mtmamba_jax.planning.collectives import count_collectives, count_loops
from mtmamba_jax.planning.topology import Topology
from mtmamba_jax.tasks import Task
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.state import abstract_state
from mtmamba_jax.training.step import create_train_step


@dataclasses.dataclass(frozen=True)
class Saving:
    """A setting that takes less memory.

    Attributes:
      key: of the configuration.
      value: that saves.
      applies: whether it can be set, given the configuration and the number of devices.
      programs: of `MODEL_PROGRAMS`, that it changes.
    """

    key: str
    value: object
    applies: Callable[[ConfigDict, int], bool]
    programs: Sequence[str] = ("step",)


def _in_place_of(key: str, value: str, others: Sequence[str], programs=("step",)) -> Saving:
    return Saving(
        key, value, lambda config, _: configuration.flatten(config)[key] in others, programs
    )


def _microbatches(parts: int) -> Saving:
    """Whole images on each device, and a loss that is a mean over images."""

    def applies(config, devices):
        return (
            config.train.microbatches < parts
            and config.train.batch_size % (devices * parts) == 0
            and config.loss.reduction == "image"
        )

    return Saving("train.microbatches", parts, applies)


def _shared_state(parts: int) -> Saving:
    def applies(config, devices):
        free = config.mesh.data == -1
        return free and config.mesh.fsdp < parts and devices % parts == 0

    return Saving("mesh.fsdp", parts, applies, MODEL_PROGRAMS)


SAVINGS = (
    _in_place_of("model.dtype", "bfloat16", ("float32",), MODEL_PROGRAMS),  # also faster
    _shared_state(4),  # weights are sent to where they are needed
    _shared_state(2),
    _microbatches(2),  # smaller products, the same work
    _in_place_of("model.remat", "dots", ("none",)),  # all but the matrix products done twice
    _in_place_of("model.remat", "full", ("none", "dots")),  # forward done twice
    *(_microbatches(parts) for parts in (4, 8, 16, 32)),
    _shared_state(16),
)
"""What to try when a program does not fit, cheapest in speed first."""


def plan_records(what: str, config: ConfigDict, topology: Topology) -> Iterator[Record]:
    """Yields the record of a program and, where it does not fit, of settings with which it may.

    Each of these keeps those before it that took less; the last fits if any does.

    Args:
      what: one of `MODEL_PROGRAMS`: the training step, or the prediction of a batch.
      config: gives the model, the size of images and the batch, `train.batch_size` or
        `eval.batch_size`.
      topology: to compile for.

    Raises:
      ValueError: a configuration that cannot work, or a batch that does not split.
    """
    check_name("program", what, MODEL_PROGRAMS)
    tasks = configuration.tasks(config)
    configuration.check(config, [task.name for task in tasks])
    count = len(topology.devices)
    _check_batch(what, config, topology)
    record = _record(what, config, tasks, topology, {})
    yield record
    config = config.copy_and_resolve_references()
    for saving in SAVINGS:
        if record["fits"]:
            return
        if what in saving.programs and saving.applies(config, count):
            tried = config.copy_and_resolve_references()
            configuration.override(tried, {saving.key: str(saving.value)})
            settings = record["settings"] | {saving.key: saving.value}
            found = _record(what, tried, tasks, topology, settings)
            yield found
            if _peak(found) <= _peak(record):
                config, record = tried, found


def _peak(record: Record) -> float:
    """Bytes that a program takes; one that the compiler refused takes more than any other."""
    return float("inf") if record["refusal"] else record["memory_bytes"]["peak"]


def _check_batch(what: str, config: ConfigDict, topology: Topology) -> None:
    count, mesh = len(topology.devices), config.mesh
    wanted = mesh.fsdp * (count // mesh.fsdp if mesh.data == -1 else mesh.data)
    if wanted != count:
        raise ValueError(
            f"mesh.data={mesh.data} and mesh.fsdp={mesh.fsdp} do not make the {count} devices of "
            f"{topology.name}."
        )
    parts = config.train.microbatches if what == "step" else 1
    key, size = batch_of(what, config)
    if size % (count * parts):
        split = f" in train.microbatches={parts}" if parts > 1 else ""
        raise ValueError(
            f"{key}={size}{split} does not split over the {count} devices of "
            f"{topology.name}: it must be a multiple of {count * parts}."
        )


def batch_of(what: str, config: ConfigDict) -> tuple[str, int]:
    """Returns the key of a program's batch size, and that size."""
    if what == "step":
        return "train.batch_size", config.train.batch_size
    return "eval.batch_size", config.eval.batch_size


def _record(what, config, tasks, topology, changed) -> Record:
    start = time.perf_counter()
    lower = {"step": _lower_step, "inference": _lower_prediction}[what]
    mesh = create_mesh(batch_of(what, config)[1], devices=topology.devices, **config.mesh)
    lowered = lower(config, tasks, mesh)
    try:
        program, refusal = lowered.compile(compiler_options=topology.compiler_options), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "memory space vmem" in str(error):
            raise
        program, refusal = None, _refusal(str(error))
    record = {
        "settings": changed,
        "compile_seconds": time.perf_counter() - start,
        "available_bytes": topology.memory,
        "refusal": refusal,
        "fits": False,
    }
    return record if program is None else record | _numbers(program, topology)


def _refusal(message: str) -> str:
    """Returns the sentence in which a compiler says how much memory is missing."""
    found = re.search(r"Ran out of memory[^\n]*", message)
    return found.group() if found else message.splitlines()[0]


def _numbers(program: jax.stages.Compiled, topology: Topology) -> Record:
    # A TPU's program lies in the same memory, which the compiler's own check leaves out (libtpu
    # 0.0.42 refuses arguments and temporaries beyond it); for GPUs it gives 0.
    code = program.memory_analysis().generated_code_size_in_bytes
    memory = program_memory(program)
    memory |= {"code": code, "peak": memory["peak"] + code}
    cost = program.cost_analysis() or {}  # of a GPU that is not here there is none
    flops, moved = cost.get("flops"), cost.get("bytes accessed")
    text = program.as_text()
    return {
        "fits": memory["peak"] <= topology.memory,
        "memory_bytes": memory,
        "flops": flops,
        "flops_seconds": flops and flops / topology.chip.flops,
        "bytes": moved,
        "bytes_seconds": moved and moved / topology.chip.bytes,
        "loops": count_loops(text),
        "collectives": count_collectives(text),
    }


def _lower_step(config, tasks, mesh) -> jax.stages.Lowered:
    graph, parameters = abstract_build(ModelSettings(**config.model), tasks)
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    state, layout = abstract_state(graph, parameters, optimizer, mesh)
    data = config.data
    batch = abstract_batch(tasks, config.train.batch_size, data.size, data.label_scale)
    return create_train_step(config, graph, tasks, optimizer, mesh, layout).lower(state, batch)


def _lower_prediction(config, tasks, mesh) -> jax.stages.Lowered:
    graph, parameters = abstract_build(ModelSettings(**config.model), tasks)
    images = abstract_batch((), config.eval.batch_size, config.data.size)["images"]
    layout = split_state(parameters, mesh)
    return create_predict_step(graph, mesh, layout).lower(parameters, images)


def abstract_batch(
    tasks: Sequence[Task], batch_size: int, size: Sequence[int], label_scale: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of what `sharding.put_batch` puts on the devices.

    Args:
      tasks: that have labels in the batch.
      batch_size: b.
      size: height and width of the images.
      label_scale: labels are this many times as high and wide.
    """
    example = on_device(random_batch(tasks, 1, size, label_scale))
    return {
        key: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype)
        for key, value in example.items()
    }
