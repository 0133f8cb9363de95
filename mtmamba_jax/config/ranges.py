"""Checks values of configuration keys against the valid values that `configs/common.py` declares.

Forms of valid values, besides a tuple of names:

    [0, 1)                               a finite number in an interval, as float32
    -1 or in [1, 8)                      the same, or -1
    two integers in [1, 8)
    two ascending numbers in (0, 8]
    name in models.swin.SWIN_SIZES       a key of that table in the package
    distinct names, a path               checked where the names and paths are known
"""

import importlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mtmamba_jax.configs.common import KEYS, Key
from mtmamba_jax.messages import check_name

_INTERVAL = re.compile(
    r"(?:(-1) or in |two (integers|ascending numbers) in )?([\[(])(.+), (.+)([\])])"
)


def check_ranges(values: Mapping[str, object]) -> None:
    """Checks every value of a configuration.

    Args:
      values: {dotted key: value}, with lists instead of tuples. None is valid where it is the
        default.

    Raises:
      ValueError: If a value is not valid. The message names the key, the value and the range.
    """
    for key in KEYS:
        prefix = key.name.removesuffix("TASK")
        names = [name for name in values if name.startswith(prefix)]
        for name in [key.name] if prefix == key.name else names:
            if values[name] is not None or not isinstance(key.default, type):
                _check(name, key, values[name])


def _check(name: str, key: Key, value: Any) -> None:
    if names := _names(key.valid):
        if value not in names:
            check_name(f"value of config key {name!r},", str(value), names)
    elif found := _INTERVAL.fullmatch(str(key.valid)):
        other, pair, *interval = found.groups()
        if pair:
            valid = isinstance(value, list) and len(value) == 2
            valid = valid and all(_contains(interval, v, pair == "integers") for v in value)
            valid = valid and (pair == "integers" or value[0] <= value[1])
        else:
            valid = (other and value == int(other)) or _contains(interval, value)
        if not valid:
            example = f", such as {','.join(map(str, key.default))}" if pair else ""
            where = key.valid if other or pair else f"in {key.valid}"
            got = f"{value}"
            if isinstance(value, float) and _inside(interval, value):
                got += f", which float32 makes {_rounded(value):g}"
            raise ValueError(f"Config key {name!r} must be {where}{example}; got {got}.")
    elif isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError(
            f"Config key {name!r} must be {key.valid}; got {value!r}. Omit it to use none."
        )


def _names(valid: str | tuple[str, ...]) -> Collection[str]:
    """Returns the names of a tuple or of a table in the package; none for other valid values."""
    if not isinstance(valid, str):
        return valid
    if not valid.startswith("name in "):
        return ()
    module, _, table = valid.removeprefix("name in ").rpartition(".")
    return getattr(importlib.import_module(f"mtmamba_jax.{module}"), table)


def _contains(interval: list[str], value: object, integers: bool = False) -> bool:
    """Returns whether a number is in an interval, also after rounding to float32."""
    if isinstance(value, bool) or not isinstance(value, int if integers else int | float):
        return False
    return _inside(interval, value if isinstance(value, int) else _rounded(value))


def _rounded(value: float) -> float:
    """Returns a number as the program computes with it: in float32, in which XLA takes numbers
    below the smallest normal one for 0."""
    with np.errstate(over="ignore"):  # becomes infinite, which no interval contains
        rounded = np.float32(value)
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else float(rounded)


def _inside(interval: list[str], number: float) -> bool:
    opening, low, high, closing = interval
    lowest, highest = _number(low), _number(high)
    above = number > lowest if opening == "(" else number >= lowest
    return above and (number < highest if closing == ")" else number <= highest)


def _number(text: str) -> float:
    """Returns the number that "90", "1e6" or "2**31" means, as values of float32 compare with."""
    base, _, power = text.partition("**")
    return _rounded(float(base) ** int(power or 1))
