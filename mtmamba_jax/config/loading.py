"""Loads a configuration by name or path and applies overrides of single keys."""

import ast
import importlib.util
import pathlib
import re
import runpy
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from mtmamba_jax.config.settings import Config, flatten, from_flat
from mtmamba_jax.messages import nearest


def load(name: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Loads a configuration, as `ml_collections.config_flags` does.

    Args:
      name: The name of a file in `configs/`, or the path of any Python file with a function
        `get_config()` that starts from `configs.common.get_config()`. `NAME:VARIANT` calls
        `get_config("VARIANT")`.
      overrides: {dotted key: text}, parsed by the rules of `config_flags`. Tuples of words may be
        written without quotes: `depth,edge`.

    Raises:
      ValueError: If the name, the variant or a key is unknown (the message suggests the closest),
        or if a value does not fit.
    """
    path, _, variant = _locate(name).partition(":")
    valid = _execute(path).get("VARIANTS")
    if valid is not None and variant not in valid:
        raise ValueError(
            f"Config {name.partition(':')[0]!r} has no variant {variant!r}."
            f"{nearest(variant, valid)} Valid: {', '.join(map(repr, valid))}."
        )
    path = f"{path}:{variant}" if variant else path
    defaults = _read(path, {})
    texts = {key: _quoted(key, text, defaults) for key, text in (overrides or {}).items()}
    return from_flat(flatten(_read(path, texts)), f"Config {name!r}")


def variants(name: str) -> tuple[str, ...]:
    """Returns the variants that a configuration lists in `VARIANTS`; "" is its plain name.

    Raises:
      ValueError: If there is no such configuration.
    """
    path = _locate(name).partition(":")[0]
    return tuple(_execute(path).get("VARIANTS", ("",)))


def run_name(name: str) -> str:
    """Returns the default name of a run of `load(name)`: "synthetic", "synthetic_pascal"."""
    path, _, variant = name.partition(":")
    stem = pathlib.PurePath(path).name.removesuffix(".py")
    return f"{stem}_{variant}" if variant else stem


def _locate(name: str) -> str:
    """Returns PATH or PATH:VARIANT of a configuration's file."""
    stem, colon, variant = name.partition(":")
    if stem.endswith(".py"):
        if not pathlib.Path(stem).is_file():
            raise ValueError(f"--config={name}: there is no file {stem}.")
        return name
    spec = importlib.util.find_spec("mtmamba_jax.configs")
    assert spec and spec.submodule_search_locations
    folder = pathlib.Path(spec.submodule_search_locations[0])
    valid = sorted(path.stem for path in folder.glob("[!_]*.py"))
    if stem not in valid:
        raise ValueError(
            f"Unknown config {stem!r}.{nearest(stem, valid)} Valid: {', '.join(valid)}, or the "
            "path of a Python file (FOLDER/NAME.py)."
        )
    return f"{folder / stem}.py{colon}{variant}"


def _execute(path: str) -> dict[str, Any]:
    """Returns the globals of a configuration file."""
    try:
        return runpy.run_path(path)
    except ImportError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: str, overrides: Mapping[str, str]) -> ConfigDict:
    """Executes a configuration file and applies overrides."""
    values = flags.FlagValues()
    arguments = ["", f"--config={path}", *(f"--config.{k}={v}" for k, v in overrides.items())]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = values.config
    except ImportError as error:  # raised by get_config()
        raise ValueError(f"{path}: {error}") from error
    except flags.IllegalFlagValueError as error:
        key = re.match(r"flag --config\.([\w.]+)=", str(error))
        if not key:  # raised by get_config()
            raise ValueError(f"{path}: {error}") from error
        field = config_path.get_type(key[1], _read(path, {}))
        kind = field.__name__ if isinstance(field, type) else str(field)
        article = "an" if kind == "int" else "a"
        raise ValueError(
            f"Config key {key[1]!r} wants {article} {kind}, got {overrides[key[1]]!r}."
        ) from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config() must return an ml_collections.ConfigDict, got {config!r:.80}."
        )
    return config


def _quoted(key: str, text: str, defaults: ConfigDict) -> str:
    """Returns an override with quotes round the words of a tuple.

    Raises:
      ValueError: If the key is unknown.
    """
    valid = flatten(defaults)
    if key not in valid:
        raise ValueError(
            f"Unknown config key {key!r}.{nearest(key, valid)} configs/common.py lists every key."
        )
    if not isinstance(valid[key], list):
        return text
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return repr(tuple(part.strip() for part in text.split(",") if part.strip()))
    return text
