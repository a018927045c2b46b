#!/usr/bin/env bash
# Does a repaired teacher teach better? One embedding pass gives four caches, and each teaches students of three seeds.
# GROUPS.csv has the columns image_id and lesion_id; PROMPTS.yaml the other prompts.
# Run: benchmarks/derm_teachers.sh DATA TEACHER GROUPS.csv PROMPTS.yaml WORK
set -euo pipefail
data=$1 teacher=$2 groups=$3 prompts=$4 work=$5
mkdir -p "$work"
timed() { local began=$SECONDS; "$@"; echo "$((SECONDS - began)) s: softlabel $2 $3"; }
if [ ! -f "$work/crossfit.h5" ]; then
  timed softlabel cache build "$data" -o "$work/zeroshot.h5" --teacher "$teacher"
  timed softlabel cache rehead "$work/zeroshot.h5" --teacher "$teacher" --prompts "$prompts" -o "$work/prompts.h5"
  timed softlabel cache probe "$work/zeroshot.h5" "$data" -o "$work/probe.h5"
  timed softlabel cache probe "$work/zeroshot.h5" "$data" -o "$work/crossfit.h5" --cross-fit lesion_id --csv "$groups"
fi
for arm in zeroshot prompts probe crossfit hard; do
  cache=$arm flags=()
  if [ "$arm" = hard ]; then cache=crossfit flags=(--no-teacher); fi
  softlabel train "$data" "$work/$cache.h5" -o "$work/$arm" --seeds 3 --student shufflenet_v2_x0_5 --student-size 64 \
    --epochs 20 --anyway "${flags[@]}"
  softlabel evaluate "$work/$arm" "$data" --split test -o "$work/$arm-test"
done
