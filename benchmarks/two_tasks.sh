#!/usr/bin/env bash
# One student of two tasks beside a student of each: DATA.yaml has two label columns, named as the last two arguments;
# PROMPTS.yaml the texts of their classes. Three seeds each, scores on test.
# Run: benchmarks/two_tasks.sh DATA.yaml TEACHER PROMPTS.yaml WORK TASK TASK
set -euo pipefail
data=$1 teacher=$2 prompts=$3 work=$4 tasks=("${@:5}")
mkdir -p "$work"
[ -f "$work/t.h5" ] || softlabel cache build "$data" -o "$work/t.h5" --teacher "$teacher" --prompts "$prompts"
softlabel cache info "$work/t.h5" --data "$data" --split test
for arm in both hard "${tasks[@]}"; do
  case $arm in both) flags=() ;; hard) flags=(--no-teacher) ;; *) flags=(--label-column "$arm") ;; esac
  softlabel train "$data" "$work/t.h5" -o "$work/$arm" --seeds 3 --student shufflenet_v2_x0_5 --student-size 64 \
    --epochs 20 --anyway "${flags[@]}"
  labels=(); [[ $arm == both || $arm == hard ]] || labels=("${flags[@]}")
  softlabel evaluate "$work/$arm" "$data" --split test -o "$work/$arm-test" "${labels[@]}"
done
