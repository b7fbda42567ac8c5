#!/usr/bin/env bash
# How checkpoints/plume-pictures was trained: data, training, weights of 16 bits, scores. Works in ./outputs/pictures. Every part
# goes on where it was after a kill. One core; needs the npm client and the extra "pictures".
set -euo pipefail
world=outputs/pictures
export OMP_NUM_THREADS=1
[ -f $world/manifest.json ] || python -m plume.playground.pictures --output $world
python -m plume.playground.pictures.warmup $world $world/warmup
python -m plume.playground.pictures.shrink $world/warmup/model $world/plume-pictures
cp $world/plume-pictures/*.{json,jinja,safetensors} checkpoints/plume-pictures/ # its code files are links: save elsewhere, copy
python -m plume.playground.pictures.evaluate checkpoints/plume-pictures $world $world/scores
