#!/usr/bin/env bash
# Do generations help? A finished run becomes the teacher of the next student: build, train, evaluate, again.
# Run: benchmarks/born_again.sh DATA FIRST_RUN GENERATIONS SEED WORK
set -euo pipefail
data=$1 run=$2 generations=$3 seed=$4 work=$5
mkdir -p "$work"
for generation in $(seq 2 "$generations"); do
  cache="$work/generation$generation-$seed.h5" next="$work/generation$generation-$seed"
  softlabel cache build "$data" -o "$cache" --teacher "$run"
  softlabel train "$data" "$cache" -o "$next" --student shufflenet_v2_x0_5 --student-size 64 --epochs 20 --seed "$seed"
  softlabel evaluate "$next" "$data" --split test -o "$next-test"
  run=$next
done
