#!/usr/bin/env bash
# From plume-tiny: chains of one to four look-ups, read out after 0, 2, 4, 6 and 8 steps (docs/anytime.md). One process;
# works in ./outputs/anytime. A run that was stopped continues when the script is started again.
set -euo pipefail
world=outputs/anytime/world
[ -f $world/student/config.json ] || python -m plume.playground --output $world --rows 24000 --queries 200 --hops 1 2 3 4 \
    --tasks image-chain document-chain text-chain video-track image-look image-name

train() { # input folder, output folder, seed, options
    [ -f "$2/model.safetensors" ] || OMP_NUM_THREADS=1 python training/train.py \
        --config training/recipes/playground.yaml --train_files $world/train/pairs.jsonl \
        --media_root $world/train/media --save_strategy steps --save_steps 50 --save_total_limit 1 --verdict_pairs 0 \
        --resume_from_checkpoint true --model_name_or_path "$1" --output_dir "$2" --seed "$3" "${@:4}"
}
# Two latent steps for every sentence, so stage 4 has all eight. What inference reads is trained in every stage.
nested=(--steps_per_sentence 2 --stage_lr_scales 1 1 1 1 1 1 --latent_view_weight 0.3 --readout_steps 0 2 4 6 8
    --matryoshka_dims 16 64 --matryoshka_weights 0.2 0.2)
train checkpoints/plume-tiny outputs/anytime/explicit 42 --stage_weights 1 0 --stage_lr_scales 1 1 --learning_rate 1e-3 \
    --max_steps 400
train outputs/anytime/explicit outputs/anytime/stages 42 "${nested[@]}" --stage_weights 0 3 1 0 0 0 --learning_rate 1e-3 \
    --max_steps 200 --readout_weights 0.05 0.05 0.05 0.05 0.05
train outputs/anytime/stages outputs/anytime/stages-3-4 43 "${nested[@]}" --stage_weights 0 0 1 2 2 0 \
    --learning_rate 7e-4 --max_steps 400 --per_device_train_batch_size 32 --readout_weights 0.05 0.05 0.05 0.05 0.05
train outputs/anytime/stages-3-4 outputs/anytime/final 44 "${nested[@]}" --stage_weights 0 0 0 0 1 9 --stage_mixing 0.3 \
    --learning_rate 5e-4 --lr_scheduler_type linear --max_steps 220 --per_device_train_batch_size 32 \
    --readout_weights 0.1 0.1 0.1 0.1 0.1
