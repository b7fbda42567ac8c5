"""Train PLUME: ``accelerate launch training/train.py --config recipe.yaml`` or with flags.

python training/train.py --model_name_or_path Qwen/Qwen2-VL-2B-Instruct --train_files pairs.jsonl \
        --media_root media --output_dir outputs/plume [--dry_run]
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from transformers import AutoConfig, AutoModel, AutoProcessor, set_seed
from transformers.utils import logging
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from plume import PAPER_LAYOUT, RELEASED_LAYOUT, PlumeForEmbedding, PlumeProcessor
from plume.training.collator import PairCollator
from plume.training.config import PlumeTrainingConfig
from plume.training.data import check, load_rows
from plume.training.dry_run import describe_run
from plume.training.trainer import PlumeTrainer

logger = logging.get_logger(__name__)

# The task texts of the corpus are the instructions: a default one would never have been trained. Text-only rows of the
# authors' corpus carry a white picture.
_SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"query_prompt": ""},
    "released": {"query_prompt": "", "blank_image_size": 28},
}
_SHUFFLED = 10_000  # rows held to shuffle a stream
_LAYOUTS = {"paper": PAPER_LAYOUT, "released": RELEASED_LAYOUT}


@dataclass
class PlumeScriptArguments:
    """What the script reads and how it starts."""

    train_files: list[str] = field(
        default_factory=list, metadata={"help": "JSON or JSONL files, or datasets names, in the UME-R1 format."}
    )
    eval_files: list[str] = field(default_factory=list, metadata={"help": "Pairs to report Hit@1 and Hit@5 on."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training files while training, shuffled within 10000 rows; needs max_steps, and "
            "sub_batch_size has no effect."
        },
    )
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "Check all rows first; leave out and count the unusable ones."}
    )
    layout: str = field(
        default="paper",
        metadata={"help": "Prompt and tokens added to a plain backbone: 'paper', or 'released' for UME-R1."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Print stages and rewritten samples, train nothing."})


def load_processor(name: str, layout: str, **hub: Any) -> PlumeProcessor:
    """The processor of a PLUME checkpoint, or a fresh one for a plain backbone.

    Raises:
        ValueError: If the layout is unknown.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"The layout {layout!r} is unknown. Use one of {sorted(_LAYOUTS)}.")
    if AutoConfig.from_pretrained(name, **hub).model_type.startswith("plume"):
        return AutoProcessor.from_pretrained(name, **hub)
    return PlumeProcessor.from_backbone(name, _LAYOUTS[layout], **_SETTINGS[layout], **hub)


def load_model(arguments: ModelConfig, layout: str) -> tuple[PlumeForEmbedding, PlumeProcessor]:
    """A PLUME checkpoint as it is, or a plain backbone with a fresh adapter.

    Raises:
        ValueError: If the layout is unknown or the checkpoint is of another model.
    """
    name, hub = str(arguments.model_name_or_path), {"revision": arguments.model_revision}
    processor = load_processor(name, layout, **hub)
    kind = AutoConfig.from_pretrained(name, **hub).model_type
    options: dict[str, Any] = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation, **hub}
    if quantization := get_quantization_config(arguments):
        options["quantization_config"] = quantization
    if kind.startswith("plume"):
        return AutoModel.from_pretrained(name, **options), processor
    if kind != "qwen2_vl":
        raise ValueError(f"{name} is a {kind!r} model; PLUME starts from 'plume' or 'qwen2_vl' checkpoints.")
    model = PlumeForEmbedding.from_backbone(name, processor.token_fields(), processor.row_sources, **options)
    return model, processor


def peft_config(arguments: ModelConfig, model: PlumeForEmbedding) -> Any:
    """LoRA settings with the adapter and the new token rows always trained and saved; None without LoRA."""
    config: Any = get_peft_config(arguments)
    if config is None:
        return None
    settings = model.config
    tokens = {
        settings.anchor_token_id,
        settings.latent_start_token_id,
        settings.latent_end_token_id,
        settings.embedding_token_id,
    }
    config.modules_to_save = sorted({*(config.modules_to_save or ()), "latent_transition"})
    config.trainable_token_indices = {"embed_tokens": sorted(tokens)}
    config.task_type = None
    if arguments.lora_target_modules is None:
        config.target_modules = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    return config


def parse(arguments: list[str] | None = None) -> tuple[PlumeScriptArguments, PlumeTrainingConfig, ModelConfig]:
    """Arguments of the script, the run and the model, from flags and ``--config`` files."""
    parser = TrlParser([PlumeScriptArguments, PlumeTrainingConfig, ModelConfig])  # type: ignore[list-item]
    script, args, model = parser.parse_args_and_config(arguments)
    return script, args, model


def main(arguments: list[str] | None = None) -> None:
    """Parse, load, train, save."""
    script, args, model_arguments = parse(arguments)
    if not script.train_files:
        raise ValueError("There is nothing to train on: give --train_files.")
    set_seed(args.seed)
    if script.skip_bad_rows and script.streaming:
        raise ValueError(
            "skip_bad_rows reads every row before training, streaming none of them. Drop one of the two, or write the "
            "usable rows into a file first."
        )
    rows = load_rows(script.train_files, script.streaming)
    model, processor = load_model(model_arguments, script.layout)
    if script.skip_bad_rows:
        report, usable = check(rows, args.media_root, collate=PairCollator.from_config(processor, args))
        logger.warning(f"{report.rows - report.usable} of {report.rows} rows are left out: {report.problems}")
        rows = rows.select(usable)
    if script.dry_run:
        print(describe_run(args, model.config, processor, rows))
        return
    if isinstance(rows, IterableDataset):
        rows = rows.shuffle(seed=args.seed, buffer_size=_SHUFFLED)
    trainer = PlumeTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=load_rows(script.eval_files) if script.eval_files else None,
        processing_class=processor,
        peft_config=peft_config(model_arguments, model),
    )
    if any(parameter.dtype != torch.float32 for parameter in trainer.model.parameters() if parameter.requires_grad):
        logger.warning(
            "Some trained weights are not float32: small updates round away. Pass --dtype float32; --bf16 still "
            "computes in bfloat16."
        )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save(trainer, processor, args)


def save(trainer: PlumeTrainer, processor: PlumeProcessor, args: PlumeTrainingConfig) -> None:
    """Save a complete checkpoint: LoRA weights are merged, the unmerged ones stay in ``lora/``."""
    output = Path(args.output_dir)
    if trainer.is_world_process_zero() and hasattr(trainer.model, "merge_and_unload"):  # a peft model
        trainer.model.save_pretrained(output / "lora")
        merged = trainer.model.merge_and_unload()
        for unmerged in output.glob("adapter_*"):  # loaders would take the folder for LoRA weights alone
            unmerged.unlink()
        merged.save_pretrained(output)
        trainer.model = merged  # what a push would save again
    else:
        trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        processor.save_pretrained(output)
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
