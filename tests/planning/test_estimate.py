"""Estimates of a TPU program's time, from lines as libtpu 0.0.42 writes them."""

import json

import pytest

from mtmamba_jax.devices.chips import CHIPS
from mtmamba_jax.planning.estimate import BUNDLES, Operation, estimate, to_profile, to_trace

CHIP = CHIPS["TPU v5 lite"]
PRODUCT = 'metadata={op_name="jit(step)/jvp()/dot_general" stack_frame_id=3}'
KERNEL = 'custom_call_target="tpu_custom_call", operand_layout_constraints='


def cycles(count):
    return f'backend_config={{"window_config":{{}},"estimated_cycles":"{count}"}}'


LINES = [
    "HloModule jit_step, is_scheduled=true",
    "ENTRY %main (x: f32[8]) -> f32[8] {",
    f"  %fusion.3 = bf16[4,8]{{1,0}} fusion(%x), kind=kLoop, calls=%c, {PRODUCT}, {cycles(3000)}",
    f"  %fusion.12 = bf16[4,8]{{1,0}} fusion(%y), kind=kLoop, calls=%c, {PRODUCT}, {cycles(1500)}",
    f"  %copy.1 = f32[8]{{0}} copy(%p), metadata={{op_name=\"state['a']\"}}, {cycles(150)}",
    "  %convolve_forward.7 = bf16[4,1,112,144,384]{4,3,2,1,0} custom-call(%a, %b), "
    f"{KERNEL}{{bf16[4,1,112,144,384]{{4,3,2,1,0}}, f32[4,9,384]{{2,1,0}}}}, metadata={{}}",
    "  ROOT %unknown.2 = (f32[1024,1024]{1,0}) custom-call(%a), "
    f"{KERNEL}{{f32[8]{{0}}, f32[1024,1024]{{1,0}}, f32[1024,1024]{{1,0}}}}, metadata={{}}",
    "}",
]


def test_each_operation_has_its_time():
    found = estimate("\n".join(LINES), CHIP)
    names = ["fusion dot_general"] * 2 + ["copy", "convolve_forward", "unknown"]
    assert [operation.name for operation in found] == names
    numbers = 4 * 112 * 144 * 384
    kernel = numbers / 1024 * BUNDLES["convolve_forward"] / 1.5e9
    assert kernel > 2 * 2 * numbers / CHIP.bytes  # more than its bytes take
    moved = (3 * 1024**2 + 8) * 4 / CHIP.bytes  # of a kernel without a known number of bundles
    seconds = [2e-6, 1e-6, 1e-7, kernel, moved]
    assert [operation.seconds for operation in found] == pytest.approx(seconds)


def test_operations_of_the_same_name_are_added_and_sorted():
    profile = to_profile([Operation("a", 1.0), Operation("b", 3.0), Operation("a", 1.0)])
    assert [tuple(kernel) for kernel in profile.kernels] == [("b", 3.0, 1), ("a", 2.0, 2)]
    assert profile.span == 5.0


def test_a_trace_has_the_operations_one_after_the_other():
    trace = to_trace([Operation("a", 1e-3), Operation("b", 2e-3)])
    events = json.loads(json.dumps(trace))["traceEvents"]
    assert [(e["name"], e["ts"], e["dur"]) for e in events] == [("a", 0, 1000), ("b", 1000, 2000)]
