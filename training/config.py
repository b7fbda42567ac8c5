"""Configuration of a training run, in trl's idiom: one dataclass, flags or YAML."""

from collections.abc import Sized
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from transformers.trainer_utils import SchedulerType
from transformers.utils import is_torch_bf16_gpu_available, logging
from trl import SFTConfig

from plume.checks_plume import check_readout_steps
from plume.configuration_plume import LatentConfig
from plume.training.curriculum import PAPER_WEIGHTS, Curriculum, Stage
from plume.training.learning_rate import StageLearningRate
from plume.training.losses import Weights

logger = logging.get_logger(__name__)

# Settings of trl's text pipeline, which PLUME replaces.
_WITHOUT_EFFECT = (
    "assistant_only_loss", "chat_template_path", "completion_only_loss", "dataset_num_proc", "dataset_text_field",
    "eos_token", "eval_packing", "label_smoothing_factor", "loss_type", "packing", "packing_strategy", "pad_token",
    "padding_free", "shuffle_dataset", "train_sampling_strategy", "truncation_mode",
)  # fmt: skip
# What retrieval over the whole evaluation set cannot take.
_UNSUPPORTED = ("batch_eval_metrics", "eval_do_concat_batches", "include_for_metrics")
TEACHERS = ("explicit", "scores")  # see plume.training.teacher
# Schedules that are no function of the step, so that no factor per stage can be laid over them.
_STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


@dataclass
class PlumeTrainingConfig(SFTConfig):
    """Arguments of [`PlumeTrainer`], in addition to those of [`~transformers.TrainingArguments`].

    Changed defaults: ``learning_rate`` 5e-5 and ``per_device_train_batch_size`` 16 (the paper's per-device batch), no
    activation checkpointing (GradCache bounds the memory already), ``bf16`` only on devices that compute in it,
    ``dataloader_drop_last`` True (all ranks hold equally many pairs), ``remove_unused_columns`` False, ``max_length``
    of the prefix 4096.

    Fields are grouped as curriculum, objective, memory, data, model.
    """

    # Curriculum
    num_latent_steps: int | None = field(
        default=None, metadata={"help": "K of the final stage. Defaults to the checkpoint's."}
    )
    stage_weights: list[float] = field(
        default_factory=lambda: list(PAPER_WEIGHTS),
        metadata={"help": "Share of stages 0..S in the run, in any unit; 0 skips a stage."},
    )
    stage_mixing: float = field(default=0.0, metadata={"help": "Probability that a step rehearses an earlier stage."})
    latent_dropout: float = field(
        default=0.0, metadata={"help": "Probability that a step of the final stage leaves the latent steps out."}
    )
    stage_lr_scales: list[float] | None = field(
        default=None, metadata={"help": "Factor on the learning rate per stage. Defaults to 1 for all."}
    )
    steps_per_sentence: int | None = field(
        default=None,
        metadata={
            "help": "Latent steps for a sentence: stage s replaces the first s sentences. Defaults to equal shares of "
            "sentences and steps."
        },
    )
    rewarm_steps: int = field(
        default=0, metadata={"help": "Steps over which the learning rate rises again after a change of stage."}
    )
    final_schedule: bool = field(
        default=False,
        metadata={"help": "Give the last stage the whole learning rate schedule, not the tail of the run's."},
    )

    # Objective
    ce_weight: float = field(default=1.0, metadata={"help": "Coefficient of the suffix cross entropy."})
    embedding_weight: float = field(default=1.0, metadata={"help": "Coefficient of InfoNCE of the embeddings."})
    anchor_weight: float = field(default=1.0, metadata={"help": "Coefficient of InfoNCE of the anchor embeddings."})
    balance_weight: float = field(default=0.1, metadata={"help": "Coefficient of the routing balance."})
    temperature: float = field(default=0.02, metadata={"help": "Temperature of InfoNCE."})
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Whose ranking of the candidates the embeddings also learn: 'explicit', a frozen copy of the model "
            "that reads the rationales, or 'scores', the data's teacher_scores."
        },
    )
    ranking_weight: float = field(default=1.0, metadata={"help": "Coefficient of the teacher's ranking."})
    teacher_temperature: float = field(default=1.0, metadata={"help": "Temperature of the data's teacher_scores."})
    readout_steps: list[int] | None = field(
        default=None,
        metadata={"help": "Numbers of latent steps whose embedding is trained too, in every stage that has them."},
    )
    readout_weights: list[float] | None = field(
        default=None, metadata={"help": "Coefficient of each of readout_steps. Defaults to 1 for all."}
    )
    latent_view_weight: float = field(
        default=0.0,
        metadata={"help": "Coefficient of InfoNCE of what inference would read, in the stages before the last."},
    )
    matryoshka_dims: list[int] | None = field(
        default=None, metadata={"help": "Numbers of leading dimensions that are trained as vectors of their own."}
    )
    matryoshka_weights: list[float] | None = field(
        default=None, metadata={"help": "Coefficient of each of matryoshka_dims. Defaults to 1 for all."}
    )

    # Memory
    chunk_size: int | None = field(
        default=None, metadata={"help": "Rows per GradCache chunk. Defaults to the whole batch at once."}
    )
    chunk_tokens: int | None = field(
        default=None, metadata={"help": "Padded prefix tokens per GradCache chunk. No limit by default."}
    )

    # Data
    media_root: str | None = field(default=None, metadata={"help": "Folder that media paths are relative to."})
    sub_batch_size: int = field(default=64, metadata={"help": "Consecutive pairs from one dataset; 1 mixes fully."})
    max_suffix_length: int | None = field(
        default=None, metadata={"help": "Most rationale tokens per row; later sentences are left out."}
    )

    num_negatives: int = field(
        default=0, metadata={"help": "Most hard negatives taken from a row; rows may have fewer, or none."}
    )

    # Model
    freeze_vision: bool = field(default=False, metadata={"help": "Keep the vision tower as it is; not its merger."})
    freeze_merger: bool = field(
        default=False,
        metadata={"help": "Keep the merger as it is, which maps the tower's output to the model's width."},
    )

    # Changed defaults
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Pairs per device and step."})
    # Not False: transformers takes any value of this older name of activation_checkpointing as given.
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Older name of activation_checkpointing.", "const": True, "nargs": "?"}
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, smaller batch of an epoch."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: rows are JSON."})
    max_length: int | None = field(default=4096, metadata={"help": "Most prefix tokens; the user's text is cut."})

    def __post_init__(self) -> None:
        """Check the fields and switch off the parts of trl's data pipeline that PLUME replaces."""
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self)}
        changed = {name for name, default in defaults.items() if vars(self)[name] != default}
        if given := [name for name in _WITHOUT_EFFECT if name in changed]:
            raise ValueError(
                f"{', '.join(given)}: of trl's text pipeline, which PLUME replaces by its own, so this would have no "
                "effect. Leave it out."
            )
        if given := [name for name in _UNSUPPORTED if name in changed]:
            raise ValueError(
                f"{', '.join(given)}: Hit@1 and Hit@5 are computed over the whole evaluation set, from its embeddings "
                "alone, so evaluation would fail in the middle of the run. Leave it out."
            )
        self.prefix_max_length, self.max_length = self.max_length, None
        self.dataset_kwargs: dict[str, Any] = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        self.label_names = []
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        self._choose_precision()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # torch warns if there is none
        super().__post_init__()
        accelerator_config: Any = self.accelerator_config
        if accelerator_config.dispatch_batches is None:
            accelerator_config.dispatch_batches = False  # of a stream too, every rank reads its own batches
        self._check_objective()
        if self.stage_lr_scales is not None and len(self.stage_lr_scales) != len(self.stage_weights):
            raise ValueError(
                f"stage_lr_scales has {len(self.stage_lr_scales)} entries but there are {len(self.stage_weights)} "
                "stages (stage_weights). Give one factor per stage."
            )
        if self.lr_scheduler_type in _STATEFUL_SCHEDULES and self.stage_learning_rate() != StageLearningRate():
            raise ValueError(
                f"lr_scheduler_type={SchedulerType(self.lr_scheduler_type).value} follows the loss, not the step, so "
                "stage_lr_scales, rewarm_steps and final_schedule cannot be laid over it. Leave them out, or take "
                "another schedule."
            )
        for name, size in (("chunk_size", self.chunk_size), ("chunk_tokens", self.chunk_tokens)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")

    def _check_objective(self) -> None:
        if self.teacher not in (None, *TEACHERS):
            raise ValueError(f"teacher={self.teacher!r} is unknown. Use one of {TEACHERS}, or leave it out.")
        for name, value in (("temperature", self.temperature), ("teacher_temperature", self.teacher_temperature)):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        for name, weights in (("readout_steps", "readout_weights"), ("matryoshka_dims", "matryoshka_weights")):
            given, coefficients = vars(self)[name], vars(self)[weights]
            if coefficients is not None and len(coefficients) != len(given or ()):
                raise ValueError(
                    f"{weights} has {len(coefficients)} entries, {name} has {len(given or ())}. Give one for each, or "
                    "leave them out."
                )
        coefficients = [self.latent_view_weight, *(self.readout_weights or ()), *(self.matryoshka_weights or ())]
        if min(*coefficients, self.ranking_weight) < 0:
            raise ValueError(
                "readout_weights, matryoshka_weights, latent_view_weight and ranking_weight must be at least 0, or "
                f"training would push pairs apart; got {min(*coefficients, self.ranking_weight)}."
            )

    def _choose_precision(self) -> None:
        """Take bfloat16 if the device computes in it, else float32; warn if another dtype was asked for."""
        able = is_torch_bf16_gpu_available()
        if self.bf16 is None:
            self.bf16 = able and not (self.use_cpu or self.fp16)
        elif self.bf16 and not (self.use_cpu or able):
            logger.warning("bf16: no GPU here computes in bfloat16, so this run computes in float32.")
            self.bf16 = False

    def curriculum(self, num_latent_steps: int) -> Curriculum:
        """The curriculum of this run towards K latent steps."""
        return Curriculum(
            num_latent_steps,
            tuple(self.stage_weights),
            self.stage_mixing,
            self.latent_dropout,
            self.seed,
            self.steps_per_sentence,
        )

    def stage_learning_rate(self) -> StageLearningRate:
        """How the stages shape the learning rate."""
        return StageLearningRate(self.stage_lr_scales, self.rewarm_steps, self.final_schedule)

    def weights(self) -> Weights:
        """Coefficients of the objective."""
        prefixes = _weighted(self.matryoshka_dims, self.matryoshka_weights)
        own = (self.ce_weight, self.embedding_weight, self.anchor_weight, self.balance_weight, self.temperature)
        return Weights(*own, tuple(prefixes.items()), self.ranking_weight)

    def readouts(self, stage: Stage) -> dict[int, float]:
        """Numbers of steps that a stage reads out after, as inference does, with their coefficients."""
        steps = _weighted(self.readout_steps, self.readout_weights)
        found = {k: weight for k, weight in steps.items() if k <= stage.num_latent_steps}
        if self.latent_view_weight and not stage.is_final:
            found[stage.num_latent_steps] = found.get(stage.num_latent_steps, 0.0) + self.latent_view_weight
        return dict(sorted(found.items()))

    def check_against(self, config: LatentConfig, num_latent_steps: int) -> None:
        """Refuse read-outs and prefixes that the model cannot give.

        Raises:
            ValueError: If read-outs are empty, unsorted or above K, or a prefix is empty or wider than the vectors.
        """
        check_readout_steps(self.readout_steps, num_latent_steps)
        dims, width = self.matryoshka_dims, config.text_config.hidden_size
        if dims is not None and (not dims or dims != sorted(set(dims)) or not 1 <= dims[0] <= dims[-1] <= width):
            raise ValueError(
                f"matryoshka_dims={dims} must be increasing integers from 1 to {width}, the width of this model's "
                "vectors: they are numbers of leading dimensions. Sort them, or leave out what is too large."
            )


def _weighted(values: list[int] | None, weights: list[float] | None) -> dict[int, float]:
    return dict(zip(values or (), weights or [1.0] * len(values or ()), strict=True))


def refuse_too_few_rows(rows: Any, args: PlumeTrainingConfig) -> None:
    """Refuse a run that could not fill one batch, because it would train nothing and look as if it had.

    Args:
        rows: The training rows; streamed ones, which have no length, pass.
        args: The run.

    Raises:
        ValueError: If incomplete batches are dropped and no other is left.
    """
    needed = args.per_device_train_batch_size * args.world_size
    if isinstance(rows, Sized) and args.dataloader_drop_last and len(rows) < needed:
        raise ValueError(
            f"There are {len(rows)} training rows but a batch takes {needed} ({args.per_device_train_batch_size} on "
            f"each of {args.world_size} devices), so nothing would be trained. Lower per_device_train_batch_size, or "
            "pass --dataloader_drop_last false."
        )
