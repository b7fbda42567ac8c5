"""Train PLUME on pairs: ``python -m plume.training.train MODEL PAIRS OUTPUT``, with flags, or with a recipe.

python -m plume.training.train checkpoints/plume-tiny pairs.csv outputs/mine [--dry_run]
accelerate launch training/train.py --config recipe.yaml --train_files pairs.jsonl --output_dir outputs/plume

What is not given follows from the data (:mod:`plume.training.plan`); it ends with a verdict
(:mod:`plume.training.report`).
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, AutoModel, AutoProcessor, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from plume import PAPER_LAYOUT, RELEASED_LAYOUT, PlumeModel, PlumeProcessor, from_backbone
from plume.arguments import show_dashes
from plume.checkpoints import locate
from plume.options_plume import check_limits
from plume.start import processor_from_backbone
from plume.training.collator import PairCollator
from plume.training.config import PlumeTrainingConfig
from plume.training.data import check, folder_of, load_rows, look, parse_columns
from plume.training.distributed import leave
from plume.training.dry_run import describe_run, time_steps
from plume.training.plan import MOST_NEGATIVES, Decision, Facts, decide
from plume.training.report import Scores, describe_verdict, find_alarms, measure, write_report
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
_HELD_OUT, _FEW = 200, 200  # most pairs that are held out, and rows below which none is


@dataclass
class PlumeScriptArguments:
    """What the script reads and how it starts."""

    train_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "JSONL, JSON, CSV, TSV, Parquet or Arrow files, or datasets names as NAME[:CONFIG[:SPLIT]]; "
            "columns as sentence-transformers names them, or the UME-R1 format."
        },
    )
    column: list[str] = field(
        default_factory=list, metadata={"help": "Names of columns as OURS=YOURS, for example query=caption."}
    )
    eval_files: list[str] = field(default_factory=list, metadata={"help": "Pairs to report Hit@1 and Hit@5 on."})
    holdout: float = field(
        default=0.0,
        metadata={
            "help": f"Share of the pairs kept out for the verdict, at most {_HELD_OUT}; none below {_FEW} pairs."
        },
    )
    verdict_pairs: int = field(default=100, metadata={"help": "Pairs that the verdict is measured on; 0 for none."})
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
    max_pixels: int | None = field(
        default=None,
        metadata={
            "help": "Largest area of a picture, saved with the model; the checkpoint's, or 1003520 for a backbone."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "Print stages and rewritten samples, train nothing."})


def _is_plume(name: str, **hub: Any) -> bool:
    return AutoConfig.from_pretrained(locate(name), **hub).model_type.startswith("plume")


def refuse_unknown_layout(layout: str) -> None:
    """Refuse a layout that there is none of.

    Raises:
        ValueError: If it is.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"The layout {layout!r} is unknown. Use one of {sorted(_LAYOUTS)}.")


def load_processor(name: str, layout: str, **hub: Any) -> PlumeProcessor:
    """The processor of a PLUME checkpoint, or a fresh one for a plain backbone.

    Raises:
        ValueError: If the layout is unknown.
    """
    refuse_unknown_layout(layout)
    name = locate(name)
    if _is_plume(name, **hub):
        return AutoProcessor.from_pretrained(name, **hub)
    return processor_from_backbone(name, _LAYOUTS[layout], **_SETTINGS[layout], **hub)


def load_model(arguments: ModelConfig, layout: str) -> tuple[PlumeModel, PlumeProcessor]:
    """A PLUME checkpoint as it is, or a plain backbone with a fresh adapter.

    Raises:
        ValueError: If the layout is unknown or the checkpoint is of another model.
    """
    name, hub = locate(str(arguments.model_name_or_path)), {"revision": arguments.model_revision}
    options: dict[str, Any] = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation, **hub}
    if quantization := get_quantization_config(arguments):
        options["quantization_config"] = quantization
    refuse_unknown_layout(layout)
    if _is_plume(name, **hub):
        return AutoModel.from_pretrained(name, **options), AutoProcessor.from_pretrained(name, **hub)
    return from_backbone(name, _LAYOUTS[layout], processor_options=_SETTINGS[layout], model_options=options)


def peft_config(arguments: ModelConfig, model: PlumeModel) -> Any:
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


def refuse_split_lora(trainer: PlumeTrainer, uses_lora: bool) -> None:
    """Refuse LoRA where the weights are split over the ranks: they are merged at the end, by one rank.

    Raises:
        ValueError: If FSDP or ZeRO-3 splits them.
    """
    if uses_lora and (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "--use_peft merges its weights at the end, and FSDP and ZeRO-3 split them over the ranks, so nothing could "
            "be saved. Use training/accelerate/ddp.yaml or zero2.yaml, or train all weights."
        )


def expand(arguments: list[str]) -> list[str]:
    """``MODEL PAIRS... OUTPUT`` before the flags, as the flags they stand for.

    Raises:
        ValueError: If there are fewer than three.
    """
    first = next((place for place, text in enumerate(arguments) if text.startswith("--")), len(arguments))
    if first in (1, 2):
        raise ValueError(f"{' '.join(arguments[:first])} is not enough to train on: give MODEL PAIRS... OUTPUT.")
    if first == 0:
        return arguments
    model, *pairs, output = arguments[:first]
    named = ["--model_name_or_path", model, "--train_files", *pairs, "--output_dir", output, "--holdout", "0.1"]
    return [*named, *arguments[first:]]


def parse(
    arguments: list[str] | None = None,
) -> tuple[PlumeScriptArguments, PlumeTrainingConfig, ModelConfig, set[str]]:
    """Arguments of the script, the run and the model, and the names of those that were given, by flag or YAML."""
    words = expand(sys.argv[1:] if arguments is None else arguments)
    kinds: Any = [PlumeScriptArguments, PlumeTrainingConfig, ModelConfig]
    parser = TrlParser(kinds)
    show_dashes(parser)
    script, args, model = parser.parse_args_and_config(words)
    bare, unset = TrlParser(kinds), object()
    bare.add_argument("--config")
    names = (*vars(script), *vars(args), *vars(model), "config")
    found = vars(bare.parse_args(words, argparse.Namespace(**dict.fromkeys(names, unset))))
    flags = {name: value for name, value in found.items() if value is not unset}
    recipe = yaml.safe_load(Path(flags["config"]).read_text("utf-8")) if "config" in flags else {}
    return script, args, model, {*flags, *recipe}


def read_pairs(script: PlumeScriptArguments, args: PlumeTrainingConfig, processor: PlumeProcessor) -> tuple[Any, Any]:
    """Training rows, and rows to judge the run on: held-out ones if there are any."""
    columns = parse_columns(script.column)
    rows = load_rows(script.train_files, script.streaming, columns)
    if script.skip_bad_rows:
        collate = PairCollator.from_config(processor, args)
        collate.num_negatives = max(args.num_negatives, MOST_NEGATIVES)  # as many as a plan may take
        report, usable = check(rows, args.media_root, collate)
        reasons = "".join(f"\n{text}" for texts in report.examples.values() for text in texts)
        logger.warning(f"{report.rows - report.usable} of {report.rows} rows are left out: {report.problems}{reasons}")
        rows = rows.select(usable)
    if script.eval_files:
        return rows, load_rows(script.eval_files, columns=columns)
    if isinstance(rows, IterableDataset):
        return rows, Dataset.from_list(list(rows.take(script.verdict_pairs)))
    kept = min(int(script.holdout * len(rows)), _HELD_OUT) if len(rows) >= _FEW else 0
    if not kept:
        return rows, rows
    parts = rows.train_test_split(test_size=kept, seed=args.seed)
    return parts["train"], parts["test"]


def make_plan(
    args: PlumeTrainingConfig, given: set[str], rows: Any, model: PlumeModel, start: ModelConfig
) -> list[Decision]:
    """Settle the settings that were not given."""
    facts = Facts(
        num_rows=None if isinstance(rows, IterableDataset) else len(rows),
        width=model.config.text_config.hidden_size,
        is_trained=_is_plume(str(start.model_name_or_path), revision=start.model_revision),
        uses_lora=start.use_peft,
        contents=look(rows),
    )
    decisions = decide(args, given, facts)
    for decision in decisions:
        setattr(args, decision.name, decision.value)
    return decisions


def media_folder(files: list[str]) -> Decision | None:
    """The folder of the first file that lies here, as the one that media paths are relative to."""
    folder = folder_of(files)
    return None if folder is None else Decision("media_root", folder, "the folder of the pairs")


def main(arguments: list[str] | None = None) -> None:
    """Parse, load, plan, train, save, judge."""
    script, args, model_arguments, given = parse(arguments)
    if not script.train_files:
        raise ValueError("There is nothing to train on: give --train_files.")
    if script.skip_bad_rows and script.streaming:
        raise ValueError(
            "skip_bad_rows reads every row before training, streaming none of them. Drop one of the two, or write the "
            "usable rows into a file first."
        )
    set_seed(args.seed)
    found = None if "media_root" in given else media_folder(script.train_files)
    args.media_root = found.value if found else args.media_root
    model, processor = load_model(model_arguments, script.layout)
    if script.max_pixels is not None:
        check_limits(processor.min_pixels, script.max_pixels, "")
        processor.max_pixels = script.max_pixels
    rows, judged = read_pairs(script, args, processor)
    plan = [str(choice) for choice in (found, *make_plan(args, given, rows, model, model_arguments)) if choice]
    if isinstance(rows, IterableDataset):
        rows = rows.shuffle(seed=args.seed, buffer_size=_SHUFFLED)
    parts: dict[str, Any] = {
        "model": model, "args": args, "train_dataset": rows, "processing_class": processor,
        "eval_dataset": judged if script.eval_files else None, "peft_config": peft_config(model_arguments, model),
    }  # fmt: skip
    if script.dry_run:
        print(describe_run(args, model.config, processor, rows, plan))
        with TemporaryDirectory() as scratch:
            args.output_dir = scratch  # a trainer makes the folder
            print(f"\n{time_steps(PlumeTrainer(**parts)):.2f} s per step, measured on two of the last stage")
        return
    if args.should_log:
        print("\n".join(["What was not given follows from the data:", *plan]))
    trainer = PlumeTrainer(**parts)
    refuse_split_lora(trainer, model_arguments.use_peft)
    if any(parameter.dtype != torch.float32 for parameter in trainer.model.parameters() if parameter.requires_grad):
        logger.warning(
            "Some trained weights are not float32: small updates round away. Pass --dtype float32; --bf16 still "
            "computes in bfloat16."
        )
    sample = judged.shuffle(seed=args.seed).select(range(min(len(judged), script.verdict_pairs)))
    before = measure(trainer, sample) if script.verdict_pairs else None
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if script.verdict_pairs:
        trained_on = not script.eval_files and (script.streaming or judged is rows)
        judge(trainer, sample, before, trained_on, plan)
    save(trainer, processor, args)
    leave()


def judge(trainer: PlumeTrainer, sample: Any, before: Scores, trained_on: bool, plan: list[str]) -> None:
    """Measure again, write the report, and say what was found."""
    after = measure(trainer, sample)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    alarms = find_alarms(logs, before, after, trainer.args, trainer.curriculum)
    trainer.verdict = describe_verdict(alarms, before, after, len(sample), trained_on)
    if trainer.is_world_process_zero():
        write_report(Path(str(trainer.args.output_dir)), trainer.verdict, plan, logs)
        print(trainer.verdict)


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
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
