#!/usr/bin/env bash
# How checkpoints/plume-tiny was trained: six tasks of the playground, three runs, two processes. Works in ./outputs/tiny.
set -euo pipefail
world=outputs/tiny/world
python -m plume.playground --output $world --rows 24000 --queries 200 \
    --tasks image-chain document-chain text-chain video-track image-look image-name

train() { # input folder, output folder, options
    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 training/train.py --config training/recipes/playground.yaml \
        --train_files $world/train/pairs.jsonl --media_root $world/train/media --save_strategy no --seed 42 \
        --per_device_train_batch_size 32 --model_name_or_path "$1" --output_dir "$2" "${@:3}"
}
train $world/student outputs/tiny/explicit --stage_weights 1 0 --stage_lr_scales 1 1 --max_steps 1200
train outputs/tiny/explicit outputs/tiny/stages --stage_weights 0 1 1 1 0 --stage_lr_scales 1 1 1 1 1 \
    --learning_rate 1e-3 --max_steps 450
train outputs/tiny/stages outputs/tiny/final --stage_weights 0 0 0 1 5 --stage_lr_scales 1 1 1 1 1 \
    --learning_rate 3e-4 --max_steps 450 --stage_mixing 0.4 --latent_dropout 0.2
