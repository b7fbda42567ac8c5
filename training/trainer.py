"""PlumeTrainer: trl's SFTTrainer with the curriculum, the objective of Eq. 8 and GradCache in its hooks.

One optimizer step, whatever the batch, the chunks and the number of ranks:

1. The stage follows from ``state.global_step``; the batch of stage-free rows is rewritten to it.
2. Queries, targets and hard negatives go through *one* rollout, always through the wrapped model.
3. Every rank computes the loss of the whole gathered pool; the averaging of DDP makes its gradient exact.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch.utils.data import Sampler
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from plume import PlumeModel, PlumeOutput, PlumeProcessor
from plume.training.callbacks import EpochCallback
from plume.training.card import run_card
from plume.training.checkpoints import CheckpointedTrainer
from plume.training.collator import (
    PairCollator,
    Rows,
    chunk_sizes,
    even_sizes,
    rewrite,
    spare_row,
    split_rows,
    with_media_of_every_kind,
)
from plume.training.config import PlumeTrainingConfig, refuse_too_few_rows
from plume.training.curriculum import Stage
from plume.training.diagnostics import describe_latents, refuse_nan, retrieval_metrics, warn_of_collapse
from plume.training.distributed import gather_rows, hold_sync, is_sharded, largest, touch
from plume.training.grad_cache import cached_backward, differentiate, surrogate
from plume.training.learning_rate import StageLearningRate, scale_by_stage
from plume.training.losses import Representations, Weights, place_scores, pool_loss, ranking_kl, suffix_ce
from plume.training.sampler import SubBatchSampler
from plume.training.teacher import freeze_teacher

logger = logging.get_logger(__name__)


class PlumeTrainer(CheckpointedTrainer):
    """Trains [`PlumeModel`] on pairs through the explicit-to-latent curriculum.

    Args:
        model: The model, or a peft model around it.
        args: The run.
        train_dataset: Rows of :func:`~plume.training.data.load_rows`.
        processing_class: The processor of the model.
        eval_dataset: Rows to report Hit@1 and Hit@5 on, at the final stage.
        **kwargs: Of [`~trl.SFTTrainer`].
    """

    _tag_names = ["trl", "plume"]
    _name = "PLUME"
    # The objective is a mean over the pool, not over tokens: accumulation steps are averaged.
    loss_is_scaled_for_ga = False
    args: PlumeTrainingConfig
    model: torch.nn.Module

    def __init__(
        self,
        model: PlumeModel,
        args: PlumeTrainingConfig,
        train_dataset: Any,
        processing_class: PlumeProcessor,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        if args.num_latent_steps is not None:
            model.config.num_latent_steps = model.config.check_num_latent_steps(args.num_latent_steps)
        self.curriculum = args.curriculum(model.config.num_latent_steps)
        args.check_against(model.config, model.config.num_latent_steps)
        self.objective: Weights = args.weights()
        self._suffix, self._num_experts = list(model.config.suffix_token_ids), model.config.num_experts
        self._started_from = model.config.name_or_path
        refuse_too_few_rows(train_dataset, args)
        self._teacher = freeze_teacher(model, train_dataset, args)
        self._spare = spare_row(processing_class)
        if kwargs.get("peft_config") is not None:
            # Pushed during the run, LoRA weights would stay next to the final merged ones and be loaded on top of them.
            args.hub_strategy = HubStrategy.END
        for name, parameter in model.model.visual.named_parameters():
            if args.freeze_merger if "merger" in name else args.freeze_vision:
                parameter.requires_grad_(False)
        with warnings.catch_warnings():
            # peft asks for it by the name that transformers 5.24 deprecates.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                data_collator=PairCollator.from_config(processing_class, args),
                compute_metrics=retrieval_metrics,
                **kwargs,
            )
        self.can_return_loss = True
        self.verdict = ""  # for the card

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row", "dataset", "place", "problem"]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = SubBatchSampler(rows["dataset"], self.args.sub_batch_size, seed)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As transformers', with every row."""
        with self._every_row():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As transformers', with every row."""
        with self._every_row():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _every_row(self) -> Iterator[None]:
        """Evaluation and prediction keep the last, smaller batch, whatever training does."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    # 1. Stage

    def stage(self) -> Stage:
        """The stage of the step that is being trained; the final one in evaluation."""
        if not self.model.training:
            return self.curriculum.stages[-1]
        return self.curriculum.stage_at(self.state.global_step, self.state.max_steps)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The run's schedule, times a factor per stage and a new warm-up after each change of stage."""
        if self._resumed_steps not in (None, num_training_steps):
            logger.warning(
                f"The checkpoint was saved by a run of {self._resumed_steps} steps, this one has {num_training_steps}: "
                "the boundaries of the stages move. Resume with the same number to continue with the same curriculum."
            )
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        shape = self.args.stage_learning_rate()
        if shape != StageLearningRate():
            scale_by_stage(scheduler, self.curriculum, num_training_steps, shape)
        return scheduler

    # 2. Rollout

    def forward_rows(self, model: torch.nn.Module, rows: Rows) -> PlumeOutput:
        """One forward pass of some rows through the wrapped model."""
        if not is_sharded(self.model):
            return model(**rows.inputs)
        device = rows.inputs["input_ids"].device
        spare = {name: value.to(device) for name, value in self._spare.items()}
        output = model(**with_media_of_every_kind(rows, spare).inputs)
        return PlumeOutput(**{name: value[: len(rows)] for name, value in output.items()})

    def embed(self, batch: dict[str, Any], stage: Stage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors of the queries and targets of a batch, and the identities of the targets."""
        pairs, inputs = batch["num_pairs"], self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            output = self.forward_rows(self.model, rewrite(inputs, stage, self._suffix))
        vectors = output.embeddings.float().cpu().numpy()
        return vectors[:pairs], vectors[pairs : 2 * pairs], inputs["candidate_ids"][:pairs].cpu().numpy()

    def represent(self, output: PlumeOutput) -> Representations:
        """What the pool loss needs of a forward pass; routing has no columns at K = 0."""
        probs = output.router_probs
        routing = probs.mean(dim=1) if probs.shape[1] else probs.new_empty(len(probs), 0)
        return Representations(output.embeddings, output.anchor_embeddings, routing, output.readout_embeddings)

    # 3. Loss

    def _pool_loss(self, local: Representations, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the gathered pool; candidates are the targets of all ranks, then their hard negatives."""
        pairs, ids = batch["num_pairs"], batch["candidate_ids"]
        slots = (ids[pairs:] >= 0).nonzero().flatten()

        def gather(rows: torch.Tensor) -> list[torch.Tensor]:
            """Queries, targets and negatives of all ranks; absent negatives travel as zeros."""
            absent = rows.new_zeros(len(ids) - pairs, *rows.shape[1:])
            negatives = absent.index_copy(0, slots, rows[2 * pairs :])
            return [gather_rows(part) for part in (rows[:pairs], rows[pairs : 2 * pairs], negatives)]

        gathered = [gather(rows) for rows in local.tensors()]
        candidate_ids = torch.cat([gather_rows(ids[:pairs]), gather_rows(ids[pairs:])])
        present = candidate_ids >= 0
        queries = Representations(*(parts[0] for parts in gathered))
        candidates = Representations(*(torch.cat(parts[1:])[present] for parts in gathered))
        readouts = self.args.readouts(self.stage())
        loss, parts = pool_loss(queries, candidates, candidate_ids[present], self.objective, readouts)
        teacher_NM = self._rank(batch, gather, present)
        if teacher_NM is not None:
            parts["ranking"] = ranking_kl(
                queries.embeddings,
                candidates.embeddings,
                teacher_NM,
                candidate_ids[present],
                self.objective.temperature,
            )
            loss = loss + self.objective.ranking * parts["ranking"]
        return loss, parts

    def _rank(
        self, batch: dict[str, Any], gather: Callable[[torch.Tensor], list[torch.Tensor]], present: torch.Tensor
    ) -> torch.Tensor | None:
        """Scores of the gathered pool by the teacher, over its temperature; None where nobody teaches."""
        if self.args.teacher is None or not self.model.training:
            return None
        if self._teacher is None:
            return place_scores(gather_rows(batch["teacher_scores"]))[:, present] / self.args.teacher_temperature
        if self.stage().index == 0:  # the explicit view itself is trained
            return None
        queries, *candidates = gather(self._explicit_view(batch))
        return queries @ torch.cat(candidates)[present].T / self.objective.temperature

    @torch.no_grad()
    def _explicit_view(self, batch: dict[str, Any]) -> torch.Tensor:
        """Embeddings of all rows by the frozen copy, which reads their rationales; NaN where a row has none."""
        prefix, texts = batch["prefix"], batch["texts"].rows
        rows = rewrite(batch, self.curriculum.stages[0], self._suffix)
        sizes = chunk_sizes(prefix["attention_mask"].sum(dim=1), self.args.chunk_size, self.args.chunk_tokens)
        teacher = self._teacher.to(prefix["input_ids"].device)
        parts = [teacher(**{**chunk.inputs, "suffix_mask": None}).embeddings for chunk in split_rows(rows, sizes)]
        silent = torch.tensor([not text.segments for text in texts], device=prefix["input_ids"].device)
        return torch.cat(parts).float().masked_fill(silent[:, None], torch.nan)

    def _own_loss(
        self, output: PlumeOutput, rows: Rows, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What is a sum over rows, as these rows' share of the batch's, and its terms by name, without coefficients.

        The cross entropy is a mean over pairs and a sum over the two sides.
        """
        per_row = suffix_ce(output.suffix_log_probs, rows.inputs["suffix_mask"])[: rows.num_scored]
        terms = {"ce": per_row.sum() / batch["num_pairs"]}
        return self.objective.ce * terms["ce"], terms

    def _rewrite(self, batch: dict[str, Any]) -> Rows:
        """All rows of a batch at the stage of the step, with its read-outs."""
        stage = self.stage()
        return rewrite(batch, stage, self._suffix, tuple(self.args.readouts(stage)))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a batch in one forward pass."""
        rows = self._rewrite(inputs)
        output = self.forward_rows(model, rows)
        local, (own, terms) = self.represent(output), self._own_loss(output, rows, inputs)
        if torch.is_grad_enabled():
            loss, parts, gradients = differentiate(local, lambda pool: self._pool_loss(pool, inputs))
            through = own + surrogate(local, gradients) + touch(self.model)
            total = (loss + own).detach() + (through - through.detach())  # the value of one, the gradient of the other
        else:
            loss, parts = self._pool_loss(local, inputs)
            total = loss + own
        self._pending = (parts, terms, output.latent_states, output.router_probs)
        if not self.model.training:
            self._report(*self._pending)
        refuse_nan(total, output, rows.places, self.state.global_step)
        return (total, output) if return_outputs else total

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of a batch: at once, or in chunks through GradCache."""
        lengths = inputs["prefix"]["attention_mask"].sum(dim=1)
        sizes = chunk_sizes(lengths, self.args.chunk_size, self.args.chunk_tokens)
        if is_sharded(self.model):  # ranks pass through the modules together, equally often
            sizes = even_sizes(len(lengths), largest(len(sizes), lengths.device))
        if len(sizes) == 1:
            whole = super().training_step(model, inputs, num_items_in_batch)
            # After the backward pass, as below: ranks that chunk differently must gather in the same order.
            self._report(*self._pending)
            return whole
        model.train()
        if isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer.train()  # schedule-free ones must be told
        inputs = self._prepare_inputs(inputs)
        chunks = split_rows(self._rewrite(inputs), sizes)
        accumulation = self.current_gradient_accumulation_steps
        options = {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}
        thoughts: list[tuple[torch.Tensor, torch.Tensor]] = []

        def represent(chunk: Rows) -> Representations:
            unscored = replace(chunk, inputs={**chunk.inputs, "suffix_mask": None})
            output = self.forward_rows(model, unscored)
            thoughts.append((output.latent_states, output.router_probs))
            return self.represent(output)

        def replay(chunk: Rows) -> tuple[Representations, torch.Tensor, dict[str, torch.Tensor]]:
            output = self.forward_rows(model, chunk)
            own, terms = self._own_loss(output, chunk, inputs)
            own = own + touch(self.model)
            refuse_nan(own + output.embeddings.sum(), output, chunk.places, self.state.global_step)
            return self.represent(output), own, terms

        with self.compute_loss_context_manager():
            loss, parts, terms = cached_backward(
                chunks,
                represent,
                replay,
                lambda local: self._pool_loss(local, inputs),
                lambda scalar: self.accelerator.backward(scalar / accumulation, **options),
                lambda: hold_sync(self.accelerator, model),
            )
        self._report(parts, terms, *map(torch.cat, zip(*thoughts, strict=True)))
        return loss.detach() / accumulation

    def _report(
        self,
        parts: dict[str, torch.Tensor],
        terms: dict[str, torch.Tensor],
        latents_BKD: torch.Tensor,
        probs_BKE: torch.Tensor,
    ) -> None:
        """Collect the terms of the loss and the health of the rollout of a whole batch for the next log.

        All are logged without their coefficients; those that are sums over rows are each rank's own until here.
        """
        stage, metrics = self.stage(), self._metrics["train" if self.model.training else "eval"]
        values = {"stage": stage.index, "num_latent_steps": stage.num_latent_steps}
        values |= describe_latents(latents_BKD.detach(), probs_BKE.detach())
        own = {name: self.accelerator.gather(term.detach().reshape(1)).mean() for name, term in terms.items()}
        values |= {f"loss_{name}": part.item() for name, part in {**own, **parts}.items()}
        for name, value in values.items():
            metrics[name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and raise the alarm where the averages say that latents or routing have collapsed."""
        metrics = self._metrics["train"]
        if self.model.training:
            health = {name: sum(v) / len(v) for name, v in metrics.items() if v}
            warn_of_collapse(health, self._num_experts)
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, Any, Any]:
        """Embeddings of queries and targets at the final stage, and the identities of the targets."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        pairs = inputs["num_pairs"]
        sides = (output.embeddings[:pairs], output.embeddings[pairs : 2 * pairs])
        return loss.detach(), None if prediction_loss_only else sides, inputs["candidate_ids"][:pairs]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the package's card into the output folder, with a section on this run."""
        if self.is_world_process_zero():
            card = run_card(self.args, self._started_from, self.state.global_step, self.verdict)
            (Path(self.args.output_dir) / "README.md").write_text(card, encoding="utf-8")

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the nested inputs hide the tokens."""
        return 0
