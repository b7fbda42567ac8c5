#!/usr/bin/env bash
# From plume-tiny: chains of one to four look-ups, read out after 0, 2, 4, 6 and 8 steps (docs/anytime.md). One process;
# works in ./outputs/anytime. A run that was stopped continues when the script is started again.
set -euo pipefail
OMP_NUM_THREADS=1 python -m plume.playground.anytime_sweep --output outputs/anytime --variants anytime --seeds 42 \
    --rates 1 "$@"
