"""Checks whether a program fits on devices that this machine does not have, for `plan`.

The training step or the prediction is lowered from shapes and compiled for the topology.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from mtmamba_jax.benchmarks.programs import MODEL_PROGRAMS, Record, random_batch
from mtmamba_jax.config import Config
from mtmamba_jax.devices.sharding import create_mesh, device_arrays, state_sharding
from mtmamba_jax.devices.timing import program_memory
from mtmamba_jax.evaluation.evaluate import create_predict_step
from mtmamba_jax.messages import check_name, counted
from mtmamba_jax.models.mtmamba import abstract_build
from mtmamba_jax.planning.collectives import count_collectives, count_loops
from mtmamba_jax.planning.estimate import estimate
from mtmamba_jax.planning.topology import Topology
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.state import abstract_state
from mtmamba_jax.training.step import create_train_step


@dataclasses.dataclass(frozen=True)
class MemoryOption:
    """A setting that reduces memory use.

    Attributes:
      key: Key of the configuration.
      value: Value that reduces memory use.
      applies: Whether the value can be set, given the configuration and the number of devices.
      programs: Names in `MODEL_PROGRAMS` of the programs that the setting affects.
    """

    key: str
    value: object
    applies: Callable[[Config, int], bool]
    programs: Sequence[str] = ("step",)


def _replace(key: str, value: str, current: Sequence[str], programs=("step",)) -> MemoryOption:
    """Replaces any of the values `current`."""
    return MemoryOption(key, value, lambda config, _: config.flat()[key] in current, programs)


def _microbatches(parts: int) -> MemoryOption:
    """Splits the batch; needs whole images on each device and a loss averaged over images."""

    def applies(config, devices):
        train = config.train
        whole = train.microbatches < parts and train.batch_size % (devices * parts) == 0
        return whole and config.loss.reduction == "image"

    return MemoryOption("train.microbatches", parts, applies)


def _fsdp(parts: int) -> MemoryOption:
    """Shards the state, unless the user has fixed the mesh."""

    def applies(config, devices):
        return config.mesh.data == -1 and config.mesh.fsdp < parts and devices % parts == 0

    return MemoryOption("mesh.fsdp", parts, applies, MODEL_PROGRAMS)


MEMORY_OPTIONS = (
    _replace("model.dtype", "bfloat16", ("float32",), MODEL_PROGRAMS),  # also faster
    _fsdp(4),  # communicates the weights
    _fsdp(2),
    _microbatches(2),  # smaller matrix products, the same work
    _replace("model.remat", "dots", ("none",)),  # recomputes all but the matrix products
    _replace("model.remat", "full", ("none", "dots")),  # recomputes the forward pass
    *(_microbatches(parts) for parts in (4, 8, 16, 32)),
    _fsdp(16),
)
"""Settings to try when a program does not fit, those that cost the least speed first."""


def plan_records(
    what: str, config: Config, topology: Topology, *, estimated: bool = False
) -> Iterator[Record]:
    """Yields the record of a program and, if it does not fit, of settings that use less memory.

    Each of these settings keeps the previous ones that reduced memory use. If any of them fits, it
    is the last record.

    Args:
      what: One of `MODEL_PROGRAMS`: the training step or the prediction of a batch.
      config: Sets the model, the image size and the batch size (`train.batch_size` or
        `eval.batch_size`).
      topology: Devices to compile for.
      estimated: Whether the first record has the program's `operations`, see `estimate`.

    Raises:
      ValueError: If the configuration is invalid, the batch does not split over the devices, or
        there are no estimates for them.
    """
    check_name("program", what, MODEL_PROGRAMS)
    _check_batch(what, config, topology)
    chip = topology.chip
    if estimated and (topology.devices[0].platform != "tpu" or chip.clock is None):
        raise ValueError(
            f"--profile and --trace have no estimates for {topology.name}. Use a v4, v5e or v5p."
        )
    record = _record(what, config, topology, {}, estimated)
    yield record
    for option in MEMORY_OPTIONS:
        if record["fits"]:
            return
        if what in option.programs and option.applies(config, len(topology.devices)):
            section, name = option.key.split(".")
            tried = config.replace(**{section: {name: option.value}})
            settings = record["settings"] | {option.key: option.value}
            found = _record(what, tried, topology, settings)
            yield found
            if _peak(found) <= _peak(record):
                config, record = tried, found


def _peak(record: Record) -> float:
    """Returns a program's memory use in bytes, infinite if the compiler refused it."""
    return float("inf") if record["refusal"] else record["memory_bytes"]["peak"]


def _check_batch(what: str, config: Config, topology: Topology) -> None:
    count, mesh = len(topology.devices), config.mesh
    product = mesh.fsdp * (count // mesh.fsdp if mesh.data == -1 else mesh.data)
    if product != count:
        raise ValueError(
            f"mesh.data={mesh.data} and mesh.fsdp={mesh.fsdp} do not match the "
            f"{counted(count, 'device')} of {topology.name}. Their product must be {count}; "
            "mesh.data=-1 takes all devices."
        )
    parts = config.train.microbatches if what == "step" else 1
    key, size = batch_of(what, config)
    if size % (count * parts):
        split = f" in train.microbatches={parts}" if parts > 1 else ""
        raise ValueError(
            f"{key}={size}{split} does not split over the {counted(count, 'device')} of "
            f"{topology.name}: it must be a multiple of {count * parts}."
        )


def batch_of(what: str, config: Config) -> tuple[str, int]:
    """Returns the configuration key of a program's batch size, and the batch size."""
    if what == "step":
        return "train.batch_size", config.train.batch_size
    return "eval.batch_size", config.eval.batch_size


def _record(what, config, topology, settings, estimated=False) -> Record:
    start = time.perf_counter()
    lower = {"step": _lower_step, "inference": _lower_prediction}[what]
    mesh = create_mesh(batch_of(what, config)[1], devices=topology.devices, **vars(config.mesh))
    lowered = lower(config, config.tasks.selected, mesh)
    try:
        program, refusal = lowered.compile(compiler_options=topology.compiler_options), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "memory space vmem" in str(error):
            raise
        program, refusal = None, _refusal(str(error))
    record = {
        "settings": settings,
        "compile_seconds": time.perf_counter() - start,
        "available_bytes": topology.memory,
        "refusal": refusal,
        "fits": False,
    }
    return record if program is None else record | _numbers(program, topology, estimated)


def _refusal(message: str) -> str:
    """Returns the sentence in which the compiler reports how much memory it needs."""
    found = re.search(r"Ran out of memory[^\n]*", message)
    return found.group() if found else message.splitlines()[0]


def _numbers(program: jax.stages.Compiled, topology: Topology, estimated: bool) -> Record:
    # A TPU's program code is in the same memory, but the compiler's own check ignores it (libtpu
    # 0.0.42 only refuses arguments and temporaries beyond the limit). For GPUs the size is 0.
    memory, analysis = program_memory(program), program.memory_analysis()
    assert memory is not None and analysis is not None  # compilers of TPUs, GPUs and CPUs report it
    code = analysis.generated_code_size_in_bytes
    memory |= {"code": code, "peak": memory["peak"] + code}
    cost = program.cost_analysis() or {}  # there is none for a GPU that is not present
    flops, moved = cost.get("flops"), cost.get("bytes accessed")
    text = program.as_text() or ""  # tens of megabytes
    operations = estimate(text, topology.chip) if estimated else []
    return {
        "fits": memory["peak"] <= topology.memory,
        "memory_bytes": memory,
        "flops": flops,
        "flops_seconds": flops and flops / topology.chip.flops,
        "bytes": moved,
        "bytes_seconds": moved and moved / topology.chip.bytes,
        "loops": count_loops(text),
        "collectives": count_collectives(text),
        **({"operations": [each._asdict() for each in operations]} if estimated else {}),
    }


def _lower_step(config, tasks, mesh) -> jax.stages.Lowered:
    graph, parameters = abstract_build(config.model, tasks)
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    state, layout = abstract_state(graph, parameters, optimizer, mesh)
    data = config.data
    batch = abstract_batch(tasks, config.train.batch_size, data.size, data.label_scale)
    return create_train_step(config, graph, tasks, optimizer, mesh, layout).lower(state, batch)


def _lower_prediction(config, tasks, mesh) -> jax.stages.Lowered:
    graph, parameters = abstract_build(config.model, tasks)
    images = abstract_batch((), config.eval.batch_size, config.data.size)["images"]
    layout = state_sharding(parameters, mesh)
    return create_predict_step(graph, mesh, layout).lower(parameters, images)


def abstract_batch(
    tasks: Sequence[Task], batch_size: int, size: Sequence[int], label_scale: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a `random_batch` on the devices (`sharding.put_batch`)."""
    example = device_arrays(random_batch(tasks, 1, size, label_scale))
    return {
        key: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype)
        for key, value in example.items()
    }
