"""Counts the communication between devices in the text (HLO) of a compiled program."""

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# `%name = SHAPE all-reduce(...`. An asynchronous collective is a `-start` and a `-done`, or is in a
# computation of its own that an `async-start` calls.
_COLLECTIVE = re.compile(
    rf"^\s*(?:ROOT )?\S+ = (\(.+?\)|\S+) ({'|'.join(KINDS)})(-start)?\(", re.MULTILINE
)
_LOOP = re.compile(r"^\s*(?:ROOT )?\S+ = (?:\(.+?\)|\S+) while\(", re.MULTILINE)
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")  # bf16[4,64], f8e4m3fn[2], pred[], token[]


def count_collectives(text: str) -> dict[str, dict[str, int]]:
    """Returns {kind: {"count": number, "bytes": size of the results on one device}}.

    These are the collectives in the text of a compiled program, `jax.stages.Compiled.as_text()`;
    those in a loop count once.
    """
    found: dict[str, dict[str, int]] = {}
    for shape, kind, start in _COLLECTIVE.findall(text):
        arrays = ARRAY.findall(shape)
        if start and kind != "all-reduce":  # (operands, results, contexts), or without contexts
            arrays = [array for array in arrays if array != ("u", "32", "")]
            arrays = arrays[len(arrays) // 2 :]
        total = found.setdefault(kind, {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += sum(map(array_bytes, arrays))
    return found


def array_size(array: tuple[str, str, str]) -> int:
    """Returns how many numbers an array has, given a match of `ARRAY`."""
    return math.prod(map(int, filter(None, array[2].split(","))))


def array_bytes(array: tuple[str, str, str]) -> int:
    """Returns the bytes of an array, given a match of `ARRAY`."""
    letters, bits, _ = array
    bits = int(bits or (8 if letters == "pred" else 0))
    return array_size(array) * bits // 8


def count_loops(text: str) -> int:
    """Returns the number of loops in a compiled program; compilers count their bodies once."""
    return len(_LOOP.findall(text))
