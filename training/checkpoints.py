"""Checkpoints of a run that survive a kill, and the resuming from them.

1. **Save**: a checkpoint is written into ``.unfinished/`` and renamed when it is whole, so a folder called
   ``checkpoint-N`` never lacks a part because a run was killed.
2. **Find**: ``resume_from_checkpoint=True`` takes the newest whole one and says which it passes over.
3. **Refuse**: a checkpoint that lacks a part is refused by the name of the part. Resumed without optimizer, schedule or
   random state, a run would continue to other losses without a word.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging
from trl import SFTTrainer

from plume import PlumeModel
from plume.training.curriculum import Curriculum, refuse_other_curriculum
from plume.training.distributed import own_class

logger = logging.get_logger(__name__)

_CURRICULUM_FILE = "curriculum.json"
_UNFINISHED = ".unfinished"
_WEIGHTS = ("model.safetensors", SAFE_WEIGHTS_INDEX_NAME, "adapter_model.safetensors")
_STATE = (_CURRICULUM_FILE, "trainer_state.json", "training_args.bin", "scheduler.pt")


def missing_parts(folder: Path, world_size: int = 1, sharded: bool = False) -> list[str]:
    """Names of what a run cannot continue without and a checkpoint does not hold.

    Args:
        folder: The checkpoint.
        world_size: Ranks of the run that resumes; each has a random state of its own.
        sharded: Whether FSDP or DeepSpeed wrote it: weights and optimizer then have names of theirs.
    """
    random_states = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    absent = [name for name in (*_STATE, *random_states) if not (folder / name).is_file()]
    if sharded:
        return absent
    absent += [] if (folder / "optimizer.pt").is_file() else ["optimizer.pt"]
    found = [name for name in _WEIGHTS if (folder / name).is_file()]
    if not found:
        return [*absent, _WEIGHTS[0]]
    if found[0] == SAFE_WEIGHTS_INDEX_NAME:
        shards = json.loads((folder / found[0]).read_text("utf-8"))["weight_map"].values()
        absent += sorted(name for name in set(shards) if not (folder / name).is_file())
    config = "adapter_config.json" if found[0] == _WEIGHTS[-1] else "config.json"
    return absent if (folder / config).is_file() else [*absent, config]


def newest_whole(output: Path, world_size: int = 1, sharded: bool = False) -> Path | None:
    """The newest checkpoint of a run that lacks nothing; those passed over are logged. None if there is none."""
    numbered = [
        (found, folder) for folder in output.glob("checkpoint-*") if (found := re.search(r"-(\d+)$", folder.name))
    ]
    for _, folder in sorted(numbered, key=lambda pair: int(pair[0][1]), reverse=True):
        absent = missing_parts(folder, world_size, sharded)
        if not absent:
            return folder
        logger.warning(f"{folder} is passed over: it lacks {', '.join(absent)}.")
    return None


class CheckpointedTrainer(SFTTrainer):
    """Saves whole checkpoints with the state of the curriculum, and resumes from whole ones only."""

    curriculum: Curriculum
    _resumed_steps: int | None = None
    _staging: Path | None = None

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: A folder, or True for the newest whole checkpoint of the output folder; a run that
                has none yet begins at the start and logs it.
            **kwargs: Of [`~transformers.Trainer.train`].

        Raises:
            ValueError: If the folder lacks a part, or was saved with another curriculum.
        """
        given = str(resume_from_checkpoint or False)
        if given.lower() in ("true", "false"):  # from the command line it is a string
            resume_from_checkpoint = self._newest() if given.lower() == "true" else None
        elif absent := missing_parts(Path(given), self.args.world_size, self._sharded()):
            raise ValueError(
                f"The checkpoint {given} lacks {', '.join(absent)}: resumed from it, the run would not continue as the "
                "one that saved it. Pass --resume_from_checkpoint true for the newest whole one, or start a new run "
                "from its weights with --model_name_or_path."
            )
        if self.model_wrapped is self.model and not self._sharded():
            # accelerate 1.15 marks a model that was evaluated as wrapped: trained after that, ranks would drift apart.
            vars(self.model).pop("_is_accelerate_prepared", None)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _sharded(self) -> bool:
        return self.is_fsdp_enabled or self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _newest(self) -> str | None:
        found = newest_whole(Path(str(self.args.output_dir)), self.args.world_size, self._sharded())
        logger.warning(
            f"Resuming from {found}." if found else f"{self.args.output_dir} holds no whole checkpoint: starting anew."
        )
        return str(found) if found else None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name, best = f"checkpoint-{self.state.global_step}", self.state.best_model_checkpoint
        push, self.args.push_to_hub = self.args.push_to_hub, False  # of the finished folder, below
        self._staging = run / _UNFINISHED
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            staging, self._staging, self.args.push_to_hub = self._staging, None, push
        if self.state.best_model_checkpoint != best:  # the best one so far is this one, at its place to be
            self.state.best_model_checkpoint = str(run / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
            if (run / name).exists():
                (run / name).rename(staging / "replaced")
            (staging / name).rename(run / name)
            shutil.rmtree(staging)
            rotate_checkpoints(str(run), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()
        if push:
            self._push_from_checkpoint(str(run / name))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model, gathered where it is sharded, whatever the checkpoints of the run hold."""
        if self.is_fsdp_enabled and not _internal_call:
            self._save(output_dir, self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if state_dict is not None:  # gathered, so that tied weights share no memory and would be saved twice
            tied = self.model.all_tied_weights_keys if isinstance(self.model, PlumeModel) else ()
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        with own_class(self.model):
            super()._save(output_dir, state_dict)
        if not self.args.should_save:  # the folder is made by the rank that saves
            return
        folder = Path(str(output_dir or self.args.output_dir))
        scheduled = self.curriculum.scheduled_at(self.state.global_step, max(self.state.max_steps, 1))
        state = {**self._curriculum_state(), "step": self.state.global_step, "stage": scheduled.index}
        (folder / _CURRICULUM_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def _curriculum_state(self) -> dict[str, Any]:
        """What a resumed run must share with the run that saved it."""
        curriculum = self.curriculum
        return {
            "num_latent_steps": curriculum.num_latent_steps,
            "stage_weights": list(curriculum.weights),
            "stage_mixing": curriculum.mixing,
            "latent_dropout": curriculum.dropout,
            "steps_per_sentence": curriculum.per_segment,
            "max_steps": self.state.max_steps,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved: Mapping[str, Any] = json.loads((Path(resume_from_checkpoint) / _CURRICULUM_FILE).read_text("utf-8"))
        self._resumed_steps = saved.get("max_steps")
        own = {name: value for name, value in self._curriculum_state().items() if name != "max_steps"}
        refuse_other_curriculum(saved, own, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
