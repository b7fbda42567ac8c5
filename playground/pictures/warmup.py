"""Teach a fresh student pictures and words, before any curriculum: they meet at one vector per concept.

``python -m plume.playground.pictures.warmup WORLD OUTPUT``. A contrast between a few hundred pairs hardly moves a fresh
model: it stays at the log of the pool for hundreds of steps. Here every picture and every word is classified among
*all* concepts instead, with one learned vector per concept that both sides share and that is thrown away at the end.

1. **Parts**: the vision tower and the embedding table, without the decoder. A picture is its visual token, a word the
   weighted mean of its pieces, each at unit size, which is what a fresh decoder starts with.
2. **Whole**: the model as it is used, with K latent steps, and a decoder that starts with these weights. What is
   classified is its embedding. The vision tower stays as it is: with so few pictures per step it would forget.

The temperature is fixed. A learned one falls until vectors need not be near their concept's to be nearest to it, and
then a word and a picture of one concept are far apart.

Composed queries are classified too. Every skin tone of a person or a hand has a vector of its own, which its pictures
share with a picture without skin tone and a wish; "the same as a woman" has the woman's.

The same command resumes after a kill, from the newest state in OUTPUT, with the random numbers of an uninterrupted run.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.utils import logging

import plume
from plume import PlumeProcessor
from plume.arguments import ArgumentParser
from plume.playground.pictures.augment import augment
from plume.playground.pictures.corpora import partners
from plume.playground.pictures.drawing import STYLES
from plume.playground.pictures.splits import is_trained_style, split_of
from plume.playground.pictures.student import start_weighing
from plume.playground.pictures.words import WISHES, gender_wish, tone_wish
from plume.playground.pictures.world import World, read_world

logger = logging.get_logger(__name__)
_STATE, PARTS = "state.pt", "parts.pt"  # the newest, and the one after the parts
_LANGUAGE_SHARES = {"en": 5.0}  # all others: 1
_KEYWORD_SHARE = 0.35
_SMOOTHING = 0.05
_SHARPNESS = 4.0
_SCALE = 14.0  # 1 / temperature
_DROPPED = 0.15  # share of patches
_WISH_SHARE = 0.3  # of the loss


@dataclass(frozen=True)
class Phase:
    """A part of the run.

    Attributes:
        whole: Whether the decoder takes part.
        steps: Its steps.
        words: Words per step.
        pictures: Pictures per step.
        toned: Pictures with a skin tone per step, and at most as many composed queries.
        learning_rate: Highest learning rate; it rises and falls in every phase.
        latent_steps: K of the whole.
    """

    whole: bool
    steps: int
    words: int
    pictures: int
    toned: int
    learning_rate: float
    latent_steps: int = 8


PHASES = (Phase(False, 7500, 1024, 128, 24, 2e-3), Phase(True, 300, 192, 48, 12, 8e-4))


@dataclass(frozen=True)
class Plan:
    """A run: its phases and the seed."""

    phases: tuple[Phase, ...] = PHASES
    seed: int = 0
    save_every: int = 100

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def place(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, and which of its steps it is."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        return self.phases[-1], self.phases[-1].steps


@dataclass(frozen=True)
class Shown:
    """Pictures of a step in 0..1, the numbers of what they show, of their wishes, and of what is wished, or -1."""

    pixels: torch.Tensor
    labels: torch.Tensor
    wishes: torch.Tensor
    wished: torch.Tensor


class Pictures:
    """All trained pictures in memory, by what they show.

    Concepts are numbered as in the world. The tones of a concept have the numbers after them.

    Args:
        world: What was built.
        processor: Whose settings say how pixels become patches.
    """

    def __init__(self, world: World, processor: PlumeProcessor) -> None:
        plain = [(world.number[row.key], row.path) for row in world.trained_pictures()]
        toned = list(_toned(world))
        numbers = {
            kind: len(world.number) + place for place, kind in enumerate(dict.fromkeys(kind for kind, _ in toned))
        }
        rows = [*plain, *((numbers[kind], path) for kind, path in toned)]
        self.count = len(world.number) + len(numbers)
        self.pixels = torch.stack([torch.from_numpy(world.open(path)) for _, path in rows])
        by_number: dict[int, list[int]] = {}
        for place, (number, _) in enumerate(rows):
            by_number.setdefault(number, []).append(place)
        self.by_number = by_number
        self.plain = [number for number in by_number if number < len(world.number)]
        self.toned = [number for number in by_number if number >= len(world.number)]
        self.wishes: dict[int, list[tuple[int, int]]] = {}
        for (key, tone), number in numbers.items():
            self.wishes.setdefault(world.number[key], []).append((WISHES.index(tone_wish(tone)), number))
        for concept, gender, other in partners([one for one in world.concepts if split_of(one) == "train"]):
            wish = WISHES.index(gender_wish(gender)), world.number[other.key]
            self.wishes.setdefault(world.number[concept.key], []).append(wish)
        self.patch, self.merge = processor.patch_size, processor.merge_size
        self.mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(3, 1, 1)
        self.frames = processor.temporal_patch_size
        picture = world.picture(rows[0][1])
        self.pieces = processor.tokenizer(list(WISHES), add_special_tokens=False)["input_ids"]
        asked = [{"image": picture}, *({"image": picture, "text": wish} for wish in WISHES)]
        self.prompts = processor.process_documents(asked, prompt="")  # padded on the left; the first has no wish

    def draw(self, count: int, toned: int, generator: torch.Generator, strength: float = 0.0) -> Shown:
        """Pictures, concepts equally often, then some with skin tones; changed by a strength in 0..1."""
        chosen = [
            kinds[place]
            for kinds, some in ((self.plain, count), (self.toned, toned))
            for place in torch.randperm(len(kinds), generator=generator)[:some].tolist()
        ]
        lots = torch.rand(len(chosen), 2, generator=generator).tolist()
        places = [
            self.by_number[number][int(lot * len(self.by_number[number]))]
            for number, (lot, _) in zip(chosen, lots, strict=True)
        ]
        pixels, plain = self.pixels[places].float() / 255, min(count, len(self.plain))
        changed = [
            augment(some, generator, recolor, strength)
            for some, recolor in ((pixels[:plain], True), (pixels[plain:], False))
        ]
        wishes = [_pick(self.wishes.get(number, []), lot) for number, (_, lot) in zip(chosen, lots, strict=True)]
        return Shown(torch.cat(changed), torch.tensor(chosen), *torch.tensor(wishes).T)

    def inputs(self, pixels_BCHW: torch.Tensor, wishes: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Model inputs of pictures in 0..1, in the processor's order of patches, each with its wish if it has one."""
        size, _, height, width = pixels_BCHW.shape
        p, m = self.patch, self.merge
        rows, columns = height // p, width // p
        patches = ((pixels_BCHW - self.mean) / self.std).view(size, 3, rows // m, m, p, columns // m, m, p)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        flat = patches.expand(*patches.shape[:6], self.frames, *patches.shape[7:]).reshape(size * rows * columns, -1)
        prompts = torch.zeros(size, dtype=torch.long) if wishes is None else wishes + 1
        longest = int(self.prompts["attention_mask"][prompts].sum(1).max())
        said = {name: self.prompts[name][prompts, -longest:] for name in ("input_ids", "attention_mask")}
        grid = torch.tensor([[1, rows, columns]]).expand(size, -1)
        return {**said, "pixel_values": flat, "image_grid_thw": grid}


def _toned(world: World) -> Iterator[tuple[tuple[str, str], str]]:
    """Concept, tone and path of the pictures with skin tones that may be trained."""
    trained = [concept for concept in world.concepts if split_of(concept) == "train"]
    for style in filter(is_trained_style, STYLES):
        for concept in trained:
            for tone, key in sorted(concept.toned.items()):
                if (world.folder / "pictures" / style / f"{key}.png").exists():
                    yield (concept.key, tone), f"{style}/{key}.png"


def _pick(wishes: list[tuple[int, int]], lot: float) -> tuple[int, int]:
    return wishes[int(lot * len(wishes))] if wishes else (-1, -1)


class Words:
    """All trained texts as token ids, drawn by language.

    Args:
        world: What was built.
        processor: Writes the prompts.
    """

    def __init__(self, world: World, processor: PlumeProcessor) -> None:
        words = world.words
        mark = processor.process_documents([{"text": "?"}], prompt="")["input_ids"][0].tolist()
        inner = processor.tokenizer("?", add_special_tokens=False)["input_ids"]
        cut = mark.index(inner[0])
        self.head, self.tail = mark[:cut], mark[cut + len(inner) :]
        self.ids = processor.tokenizer([word.text for word in words], add_special_tokens=False)["input_ids"]
        self.pad = processor.tokenizer.pad_token_id
        self.targets = [{world.number[key]: share for key, share in word.shares().items()} for word in words]
        shares: dict[tuple[str, bool], int] = {}
        for word in words:
            shares[word.language, word.is_name] = shares.get((word.language, word.is_name), 0) + 1
        kind = {True: 1 - _KEYWORD_SHARE, False: _KEYWORD_SHARE}
        weights = [
            _LANGUAGE_SHARES.get(word.language, 1.0) * kind[word.is_name] / shares[word.language, word.is_name]
            for word in words
        ]
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def draw(self, count: int, generator: torch.Generator) -> tuple[list[list[int]], list[dict[int, float]]]:
        """Pieces of words and how much each means which concepts."""
        places = torch.multinomial(self.weights, count, replacement=True, generator=generator).tolist()
        places.sort(key=lambda place: len(self.ids[place]))  # so that halves of a batch have less padding
        return [self.ids[place] for place in places], [self.targets[place] for place in places]

    def inputs(self, pieces: list[list[int]]) -> dict[str, torch.Tensor]:
        """Model inputs of words as their prompts."""
        return self.padded([self.head + ids + self.tail for ids in pieces])

    def padded(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        """Token ids of one width, padded on the left, with their mask."""
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}


class Warmup:
    """The run: model, concept vectors, optimizer, and the random numbers.

    Args:
        world: What was built.
        model: A fresh student, changed in place.
        processor: Its processor.
        plan: Sizes and rates.
        data: Pictures and words of another run over the same world, which take a while to read.
    """

    def __init__(
        self,
        world: World,
        model: Any,
        processor: PlumeProcessor,
        plan: Plan,
        data: tuple[Pictures, Words] | None = None,
    ) -> None:
        self.world, self.model, self.processor, self.plan = world, model.train(), processor, plan
        attend_together(model)
        model.model.visual.merger.ln_q.register_forward_hook(self._drop_patches)
        model.set_attn_implementation("eager")  # of CPUs, the fused one is slow in bfloat16
        self.pictures, self.words = data or (Pictures(world, processor), Words(world, processor))
        self.generator = torch.Generator().manual_seed(plan.seed)
        width = model.config.text_config.hidden_size
        self.concepts = nn.Parameter(torch.randn(self.pictures.count, width, generator=self.generator))
        self.direction = nn.Parameter(torch.zeros(width))  # pieces along it have more weight
        decayed = [p for p in model.parameters() if p.ndim > 1]
        groups = [
            {"params": decayed, "weight_decay": 0.05},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            {"params": [self.concepts, self.direction], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.step = 0

    @property
    def phase(self) -> Phase:
        """What is trained now."""
        return self.plan.place(self.step)[0]

    def _rate(self, step: int) -> float:
        phase, place = self.plan.place(step)
        rise = max(1, min(150, phase.steps // 10))
        share = min((place + 1) / rise, max(0.02, (phase.steps - place) / max(1, phase.steps - rise)))
        return share * phase.learning_rate

    def _start_whole(self) -> None:
        start_weighing(self.model, self.processor, _SHARPNESS * self.direction.detach())

    def _embed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(**inputs, num_latent_steps=self.phase.latent_steps).embeddings.float()

    def _drop_patches(self, merger_input: nn.Module, args: Any, states_PD: torch.Tensor) -> torch.Tensor | None:
        """Leave out some patches before the merger, which otherwise learns by heart what lies where."""
        if not self.model.training or self.phase.whole:
            return None
        kept = torch.rand(len(states_PD), 1, generator=self.generator) >= _DROPPED
        return states_PD * (kept / (1 - _DROPPED)).to(states_PD.dtype)

    def _see(self, pixels: torch.Tensor) -> torch.Tensor:
        inputs = self.pictures.inputs(pixels)
        if self.phase.whole:
            return self._embed(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        return normalize(seen.float(), dim=-1)

    def _compose(self, shown: Shown, rows: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        wishes = shown.wishes[rows]
        if self.phase.whole:
            return self._embed(self.pictures.inputs(shown.pixels[rows], wishes))
        said = self.words.padded([self.pictures.pieces[wish] for wish in wishes])
        vectors = torch.cat([self.model.get_input_embeddings()(said["input_ids"]), seen[rows].unsqueeze(1)], dim=1)
        mask = torch.cat([said["attention_mask"], torch.ones(len(rows), 1, dtype=torch.long)], dim=1)
        return _average(vectors, mask, self.direction)

    def _read(self, pieces: list[list[int]]) -> torch.Tensor:
        size = math.ceil(len(pieces) / 4)
        return torch.cat([self._read_some(pieces[start : start + size]) for start in range(0, len(pieces), size)])

    def _read_some(self, pieces: list[list[int]]) -> torch.Tensor:
        if self.phase.whole:
            return self._embed(self.words.inputs(pieces))
        inputs = self.words.padded(pieces)
        return _average(
            self.model.get_input_embeddings()(inputs["input_ids"]), inputs["attention_mask"], self.direction
        )

    def _log_probs(self, vectors: torch.Tensor, count: int | None = None) -> torch.Tensor:
        return (_SCALE * vectors @ normalize(self.concepts[:count], dim=-1).T).log_softmax(-1)

    def train_step(self) -> dict[str, float]:
        """One step; the losses of both sides, and how many pictures are named rightly."""
        if self.phase.whole and self.step and not self.plan.place(self.step - 1)[0].whole:
            self._start_whole()
        self.model.model.visual.requires_grad_(not self.phase.whole)
        losses = self._train_pictures()
        pieces, meant = self.words.draw(self.phase.words, self.generator)
        log_probs = self._log_probs(self._read(pieces), len(self.world.number))
        rows = torch.tensor([row for row, shares in enumerate(meant) for _ in shares])
        flat = torch.tensor([number for shares in meant for number in shares])
        parts = torch.tensor([share for shares in meant for share in shares.values()])
        read = -(log_probs[rows, flat] * parts).sum() / len(meant)
        read.backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), self.concepts, self.direction], 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {**losses, "words": read.item()}

    def _train_pictures(self) -> dict[str, float]:
        phase, place = self.plan.place(self.step)
        strength = 0.0 if phase.whole else place / phase.steps  # a fresh tower learns faster from what is easy
        shown = self.pictures.draw(phase.pictures, phase.toned, self.generator, strength)
        seen, plain = self._see(shown.pixels), shown.labels < len(self.world.number)
        log_probs = self._log_probs(seen[plain], len(self.world.number))
        named = log_probs.gather(1, shown.labels[plain, None])
        loss = -named.mean() * (1 - _SMOOTHING) - log_probs.mean() * _SMOOTHING
        rows = (shown.wishes >= 0).nonzero()[: self.phase.toned, 0]
        wished = torch.tensor(0.0)
        if len(rows):
            both = torch.cat([seen[~plain], self._compose(shown, rows, seen)])
            wanted = torch.cat([shown.labels[~plain], shown.wished[rows]])
            wished = nn.functional.nll_loss(self._log_probs(both), wanted)
        (loss + _WISH_SHARE * wished).backward()
        right = (log_probs.argmax(-1) == shown.labels[plain]).float().mean()
        return {"pictures": loss.item(), "right": right.item(), "wished": wished.item()}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "plan": asdict(self.plan),
            "step": self.step,
            "model": self.model.state_dict(),
            "concepts": self.concepts.data,
            "direction": self.direction.data,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
        }

    def start_from(self, parts: dict[str, Any]) -> None:
        """Begin with the whole, from the state of another run after its parts."""
        self.model.load_state_dict(parts["model"])
        self.concepts.data.copy_(parts["concepts"])
        self.direction.data.copy_(parts["direction"])
        self._start_whole()

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: If it is of another plan.
        """
        if state["plan"] != asdict(self.plan):
            raise ValueError(
                f"The state in the output folder is of another run ({state['plan']}), so it cannot be continued as "
                f"{self.plan}. Use the same options or another folder."
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.concepts.data.copy_(state["concepts"])
        self.direction.data.copy_(state["direction"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])


def _average(vectors_BTD: torch.Tensor, mask_BT: torch.Tensor, direction_D: torch.Tensor) -> torch.Tensor:
    """Mean of vectors at unit size, weighed along a direction, at unit length ``(B, D)``."""
    units_BTD = normalize(vectors_BTD, dim=-1)
    scores_BT = _SHARPNESS * units_BTD @ direction_D
    weights_BT = scores_BT.masked_fill(mask_BT == 0, -torch.inf).softmax(dim=-1)
    return normalize((units_BTD * weights_BT.unsqueeze(-1)).sum(dim=1), dim=-1)


def attend_together(model: Any) -> None:
    """Let the vision tower attend to pictures of one size in one product; transformers takes them one by one.

    On a CPU the products of one small picture cost several times what they cost as part of a batch. Weights and results
    are the same.
    """
    for block in model.model.visual.blocks:
        block.attn.forward = MethodType(_attend, block.attn)


def _attend(
    attention: Any, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: Any, **kwargs: Any
) -> torch.Tensor:
    pictures, total = len(cu_seqlens) - 1, len(hidden_states)
    query, key, value = attention.qkv(hidden_states).view(total, 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    heads = (part.unflatten(0, (pictures, -1)).transpose(1, 2).float() for part in (query, key, value))
    with torch.autocast("cpu", enabled=False):  # the fused attention of CPUs is slow in bfloat16
        mixed = nn.functional.scaled_dot_product_attention(*heads)
    return attention.proj(mixed.transpose(1, 2).reshape(total, -1))


def _save(file: Path, state: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, file)


def run(world: World, student: Path, output: Path, plan: Plan) -> Path:
    """Train, or continue, and write the model as a checkpoint.

    Args:
        world: What was built.
        student: Fresh checkpoint.
        output: Where states, log and the checkpoint go.
        plan: Sizes and rates.
    """
    model, processor = plume.load(student)
    warmup = Warmup(world, model, processor, plan)
    output.mkdir(parents=True, exist_ok=True)
    if (output / _STATE).exists():
        warmup.load(torch.load(output / _STATE, weights_only=False))
    sums: dict[str, float] = {}
    while warmup.step < plan.steps:
        for name, value in warmup.train_step().items():
            sums[name] = sums.get(name, 0.0) + value
        if warmup.step % 50 == 0:
            line = {"step": warmup.step, **{name: round(total / 50, 4) for name, total in sums.items()}}
            line["cpu_seconds"] = round(time.process_time())
            with (output / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            sums = {}
        if warmup.step % plan.save_every == 0 or warmup.step == plan.steps:
            _save(output / _STATE, warmup.state())
        if warmup.phase.whole and not plan.place(warmup.step - 1)[0].whole:
            _save(output / PARTS, warmup.state())
    model.save_pretrained(output / "model")
    processor.save_pretrained(output / "model")
    return output / "model"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    parser = ArgumentParser(prog="python -m plume.playground.pictures.warmup", description=__doc__)
    parser.add_argument("world", type=Path, help="folder that plume.playground.pictures wrote")
    parser.add_argument("output", type=Path, help="folder of the run")
    parser.add_argument("--student", type=Path, help="fresh checkpoint; WORLD/student if omitted")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    args = parser.parse_args(arguments)
    run(read_world(args.world), args.student or args.world / "student", args.output, Plan(seed=args.seed))


if __name__ == "__main__":
    main()
