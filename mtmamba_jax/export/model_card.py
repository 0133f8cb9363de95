"""What an artifact says of itself: what goes in, what comes out, how good it is, whence it is."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
from jax.export import Exported

from mtmamba_jax.checkpoints.load import Run
from mtmamba_jax.checkpoints.save import versions
from mtmamba_jax.config import Config
from mtmamba_jax.convert.weight_files import HUB
from mtmamba_jax.data_pipelines.datasets import LICENSES
from mtmamba_jax.devices.sharding import compiler_options
from mtmamba_jax.tasks import Task

MEANINGS = {
    "classes": "class numbers",
    "depth": "{unit}",
    "normals": "unit vectors: x right, y up, z towards the camera",
    "probability": "probabilities",
    "saliency": "probabilities of being salient",
}
"""What a value stands for, for each `Task.display`."""

_UNITS = {"m": "metres", "px": "disparity in pixels of the dataset's images"}

_LICENSES = LICENSES | {
    "synthetic": "None: the rooms are made by this project.",
    "folder": "Those of whoever owns the images and labels.",
}

_NEEDS = {
    ("cuda", "fused"): "an NVIDIA Hopper GPU (H100, H200)",
    ("cuda", "xla"): "an NVIDIA GPU",
    ("tpu", "fused"): "a TPU",
    ("tpu", "xla"): "a TPU",
    ("cpu", "xla"): "a CPU",
}

# Mosaic's kernels call a library of jaxlib that XLA finds once this is imported. Without it they
# are not compiled: "Failed to materialize symbols" (jax 0.11.2).
_IMPORTS = {("cuda", "fused"): ["jax.experimental.mosaic.gpu"]}


def create_card(run: Run, program: Exported, *, checkpoint: str, scan: str) -> dict[str, object]:
    """Returns the card, to be written as JSON.

    Args:
      run: that was exported.
      program: of `export.export_program`.
      checkpoint: "best" or "latest".
      scan: of `export.choose_scan`.
    """
    (platform,) = program.platforms
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        **describe_run(run, checkpoint),
        "input": {**_shape(program.in_avals[-1]), "meaning": "RGB"},
        "outputs": {task.name: _output(task, outputs[task.name]) for task in run.tasks},
        "program": {
            "platform": platform,
            "scan": scan,
            "needs": _NEEDS[platform, scan],
            "exported_with": versions(),
            "imports": _IMPORTS.get((platform, scan), []),
            "compiler_options": compiler_options({"cuda": "gpu"}.get(platform, platform)),
        },
    }


def describe_run(run: Run, checkpoint: str) -> dict[str, object]:
    """Returns what of a card is about a run and its weights, in whatever form they are given away.

    Args:
      run: whose.
      checkpoint: "best" or "latest".
    """
    config = run.config
    return {
        "model": {
            "name": config.model.name,
            "encoder": config.model.encoder,
            "dtype": config.model.dtype,
            "weights": sum(leaf.size for leaf in jax.tree.leaves(run.parameters)),
        },
        "scores": run.details.get("scores"),
        "source": {
            "dataset": config.data.name,
            "converted_from": run.details.get("source"),
            "terms": _LICENSES[config.data.name],
            "checkpoint": checkpoint,
            "step": run.step,
            "trained_with": run.details["versions"],
            "config": _settings(config),
        },
    }


def _settings(config: Config) -> dict[str, object]:
    """Returns a configuration without folders of the machine: the card is given away."""
    settings = config.flat()
    del settings["data.dir"]
    for key in ("init.run", "init.encoder"):
        if settings[key] is not None:
            settings[key] = public_name(str(settings[key]))
    return settings


def public_name(source: str) -> str:
    """Returns the name of a file or run without its folder; `hf:` repositories as they are."""
    return source if source.startswith(HUB) else pathlib.PurePath(source).name


def _shape(array: jax.core.ShapedArray) -> dict[str, object]:
    """Returns shape and dtype; None is a size that may be any number."""
    sizes = [size if isinstance(size, int) else None for size in array.shape]
    return {"shape": sizes, "dtype": str(array.dtype)}


def _output(task: Task, value: jax.core.ShapedArray) -> dict[str, object]:
    return {
        **_shape(value),
        "meaning": MEANINGS[task.display].format(unit=_UNITS.get(task.unit, task.unit)),
        "score": task.score,
        "unit": task.unit,
        "lower_is_better": task.lower_is_better,
        "classes": list(task.class_names),
    }


def to_markdown(card: Mapping) -> str:
    """Returns a card as text for people."""
    model, source, program = card["model"], card["source"], card["program"]
    outputs = card["outputs"]
    lines = [
        f"# {model['name']} with {model['encoder']}: {', '.join(outputs)}",
        "",
        f"Takes {card['input']['meaning']}, {_array(card['input'])}, and returns:",
        "",
        "| output | array | meaning | score on the test set |",
        "|---|---|---|---|",
    ]
    for name, output in outputs.items():
        score = _score(output, (card["scores"] or {}).get(name))
        lines.append(f"| {name} | {_array(output)} | {output['meaning']} | {score} |")
    for name, output in outputs.items():
        if output["classes"] and output["dtype"] == "uint8":
            numbered = ", ".join(f"{i} {label}" for i, label in enumerate(output["classes"]))
            lines += ["", f"Classes of {name}: {numbered}."]
    lines += [
        "",
        f"- Weights: {model['weights']:,} numbers; computed in {model['dtype']}.",
        _origin(source),
        f"- Terms of that data: {source['terms']}",
        *_initial(source["config"]),
        f"- Needs: {program['needs']}; jax {program['exported_with']['jax']} or newer "
        "(jax.export promises six months), flatbuffers.",
        f"- Exported with: {_versions(program['exported_with'])}; scan: {program['scan']}.",
        *(f"- Import first: {name}, as run.py does." for name in program["imports"]),
        "",
        "`python run.py IMAGE.npy ...` predicts; `model_card.json` has every score and setting.",
    ]
    return "\n".join(lines) + "\n"


def _origin(source: Mapping) -> str:
    if source["converted_from"]:
        return (
            f"- Converted from {source['converted_from']}, weights of {source['dataset']}'s tasks, "
            f"by {_versions(source['trained_with'])}; their terms hold too."
        )
    return (
        f"- Trained on: {source['dataset']}; {source['checkpoint']} checkpoint, step "
        f"{source['step']}, {_versions(source['trained_with'])}."
    )


def _initial(config: Mapping) -> list[str]:
    found = [config[key] for key in ("init.run", "init.encoder") if config[key]]
    return [
        f"- Training began with the weights of {', '.join(found)}; their terms hold too."
    ] * bool(found)


def _array(spec: Mapping) -> str:
    sizes = " ".join("b" if size is None else str(size) for size in spec["shape"])
    return f"{spec['dtype']} [{sizes}]"


def _score(output: Mapping, scores: Mapping[str, float] | None) -> str:
    if scores is None:
        return "not scored"
    unit = f" {output['unit']}" if output["unit"] else ""
    better = "lower" if output["lower_is_better"] else "higher"
    return f"{output['score']} {scores[output['score']]:.3f}{unit} ({better} is better)"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
