"""Loads a configuration by name or path and applies overrides of single keys."""

import ast
import contextlib
import importlib.util
import inspect
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from mtmamba_jax.config.settings import Config, flatten, from_flat
from mtmamba_jax.configs import common
from mtmamba_jax.messages import nearest


def load(name: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Loads a configuration.

    Args:
      name: The name of a file in `configs/`, or the path of any Python file with a function
        `get_config()` that starts from `configs.common.get_config()`. `NAME:VARIANT` calls
        `get_config("VARIANT")`.
      overrides: {dotted key: text}, parsed by the rules of `config_flags`. Tuples of words may be
        written without quotes: `depth,edge`.

    Raises:
      ValueError: If the name, the variant or a key is unknown (the message suggests the closest),
        if a value does not fit, or if the file's code fails (the message names the line).
    """
    path, variant = _locate(name)
    found = _execute(path)
    valid = found.get("VARIANTS")
    if valid is not None and variant not in valid:
        raise ValueError(
            f"Config {split_name(name)[0]!r} has no variant {variant!r}.{nearest(variant, valid)} "
            f"Valid: {', '.join(map(repr, valid))}."
        )
    config = _call(found.get("get_config"), path, variant)
    return from_flat(flatten(config) | _parse(overrides or {}), f"Config {name!r}")


def variants(name: str) -> tuple[str, ...]:
    """Returns the variants that a configuration lists in `VARIANTS`; "" is its plain name.

    Raises:
      ValueError: If there is no such configuration.
    """
    return tuple(_execute(_locate(name)[0]).get("VARIANTS", ("",)))


def run_name(name: str) -> str:
    """Returns the default name of a run of `load(name)`: "synthetic", "synthetic_pascal"."""
    path, variant = split_name(name)
    stem = re.sub(r"\.py$", "", pathlib.PurePath(path).name, flags=re.IGNORECASE)
    return f"{stem}_{variant}" if variant else stem


def split_name(name: str) -> tuple[str, str]:
    """Returns the name or path of a configuration, and its variant or "".

    The path of a file ends with the last ".py"; folders may have colons in their names.
    """
    file = re.fullmatch(r"(.*\.py)(?::(.*))?", name, re.IGNORECASE | re.DOTALL)
    stem, variant = file.groups("") if file else name.partition(":")[::2]
    return stem, variant


def _locate(name: str) -> tuple[str, str]:
    """Returns the path of a configuration's file, and its variant or ""."""
    stem, variant = split_name(name)
    if stem.lower().endswith(".py"):
        if not pathlib.Path(stem).is_file():
            raise ValueError(f"--config={name}: there is no file {stem}.")
        return stem, variant
    spec = importlib.util.find_spec("mtmamba_jax.configs")
    assert spec and spec.submodule_search_locations
    folder = pathlib.Path(spec.submodule_search_locations[0])
    valid = sorted(path.stem for path in folder.glob("[!_]*.py"))
    if stem not in valid:
        raise ValueError(
            f"Unknown config {stem!r}.{nearest(stem, valid)} Valid: {', '.join(valid)}, or the "
            "path of a Python file (FOLDER/NAME.py)."
        )
    return f"{folder / stem}.py", variant


def _execute(path: str) -> dict[str, Any]:
    """Returns the globals of a configuration file."""
    with _naming_the_line(path):
        found = runpy.run_path(path)
        if "VARIANTS" in found:
            if isinstance(found["VARIANTS"], str):
                raise TypeError("VARIANTS must be a tuple of names, such as ('', 'short')")
            found["VARIANTS"] = tuple(found["VARIANTS"])
    return found


def _call(get_config: Any, path: str, variant: str) -> ConfigDict:
    """Returns what the function of a configuration file returns for a variant."""
    if not callable(get_config):
        raise ValueError(
            f"{path}: there is no function get_config(). Define one that starts from "
            "mtmamba_jax.configs.common.get_config(), changes what differs and returns it."
        )
    given = (variant,) if variant else ()
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        wrong = f"takes no variant, got {variant!r}" if variant else "needs a variant, FILE:VARIANT"
        raise ValueError(f"{path}: get_config() {wrong}.") from None
    with _naming_the_line(path):
        config = get_config(*given)
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config() must return an ml_collections.ConfigDict, got {config!r:.80}."
        )
    return config


@contextlib.contextmanager
def _naming_the_line(path: str) -> Iterator[None]:
    """Turns an error of a configuration file's code into one line that names where it is."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        reason = str(error)
        if isinstance(error, SyntaxError):  # also of a file that this one imports
            path, lines, reason = error.filename or path, [error.lineno], error.msg
        where = f"{path}:{lines[-1]}" if lines and lines[-1] else path
        reason = " ".join(f"{type(error).__name__}: {reason}".split())
        raise ValueError(f"{where}: {reason[:300]}. Correct the file.") from error


def _parse(overrides: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values of overrides, parsed by the rules of `config_flags`.

    Raises:
      ValueError: If a key is unknown or a text is not of its key's type.
    """
    config, values = common.get_config(), flags.FlagValues()
    valid = flatten(config)
    texts = {key: _quoted(key, text, valid) for key, text in overrides.items()}
    arguments = ["", *(f"--config.{key}={text}" for key, text in texts.items())]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except flags.IllegalFlagValueError as error:
        key = re.match(r"flag --config\.([\w.]+)=", str(error))
        assert key
        field = config_path.get_type(key[1], config)
        kind = field.__name__ if isinstance(field, type) else str(field)
        article = "an" if kind == "int" else "a"
        raise ValueError(
            f"Config key {key[1]!r} wants {article} {kind}, got {overrides[key[1]]!r}."
        ) from error
    parsed = flatten(values.config)
    return {key: parsed[key] for key in texts}


def _quoted(key: str, text: str, valid: Mapping[str, object]) -> str:
    """Returns an override with quotes round the words of a tuple.

    Raises:
      ValueError: If the key is unknown.
    """
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
