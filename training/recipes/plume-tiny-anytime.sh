#!/usr/bin/env bash
# From plume-tiny: chains of one to four look-ups, read out after every step (docs/anytime.md). One process; works in
# ./outputs/anytime. A run that was stopped continues when the script is started again. Half of the sweep's learning rate
# was the best of three on the dev split.
set -euo pipefail
OMP_NUM_THREADS=1 python -m plume.playground.anytime_sweep --output outputs/anytime --variants anytime --seeds 42 \
    --rates 0.5 "$@"
