#!/bin/bash
# Runs the tests and benchmarks of a TPU and packs their output: bash docs/tpu_report.sh
# Explained in docs/tpu.md. A command that fails does not stop the others.
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
report=${1:-tpu-report}
if [ -e "$report" ]; then
    echo "$report exists: give another name, bash docs/tpu_report.sh NAME"
    exit 1
fi
mkdir -p "$report"
model=(--config=common --config.model.dtype=bfloat16)
model+=(--config.train.batch_size=4 --config.eval.batch_size=4)

run() {  # run NAME COMMAND...
    local name=$1 start=$SECONDS
    shift
    echo "$name: $*"
    "$@" >"$report/$name.txt" 2>&1
    echo "$name: exit code $?, $((SECONDS - start)) s" | tee -a "$report/times.txt"
}

run commit git log -1 --format=%H
run versions "$python" -m pip freeze
run checks "$python" launch.py checks
run tests env JAX_PLATFORMS=tpu,cpu "$python" -m pytest -m tpu -n 0 --runslow
run ss2d "$python" launch.py benchmark --what=ss2d --implementation=pallas_tpu,xla \
    --spec=stage1_t4_b1,stage2_t4_b1,stage3_t4_b1 --output="$report/ss2d.json"
run step "$python" launch.py benchmark --what=step "${model[@]}" --output="$report/step.json"
run inference "$python" launch.py benchmark --what=inference "${model[@]}" \
    --output="$report/inference.json"
run devices "$python" launch.py benchmark --what=devices "${model[@]}" \
    --config.train.batch_size=1 --output="$report/devices.json"
run train "$python" launch.py train --workdir="$report/run"
rm -rf "$report/run/best" "$report/run/latest"  # checkpoints
tar czf "$report.tgz" "$report"
echo "Send $report.tgz."
