#!/usr/bin/env bash
# The table of docs/results.md on an image folder: one cache, then seeds x (with teacher, hard labels only).
# Run: benchmarks/derm_students.sh DATA TEACHER WORK
set -euo pipefail
data=$1 teacher=$2 work=$3
mkdir -p "$work"
softlabel cache build "$data" -o "$work/t.h5" --teacher "$teacher"
for seed in 0 1 2; do
  for arm in teacher no-teacher; do
    run="$work/$arm-$seed"
    softlabel train "$data" "$work/t.h5" -o "$run" --student shufflenet_v2_x0_5 --student-size 96 \
      --seed "$seed" "--$arm"
    softlabel evaluate "$run" "$data" --split test --json "$run/test.json" >"$run/test.txt"
  done
done
