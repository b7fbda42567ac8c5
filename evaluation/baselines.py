"""What PLUME is compared with, on the same weights, prompts and code.

Both take the same inputs and return the same kind of vector as PLUME (``embedders``), so an evaluation can swap them:

- single pass: PLUME at K = 0, the embedding is read right after ``<slt>``.
- :class:`ExplicitCoT`: UME-R1's way ([24] of the paper). The rationale is written token by token with the LM head, then
  the embedding is read at ``<gen>``:

  1. **Prefix**: one pass up to ``<slt>``, as for PLUME.
  2. **Open**: ``<elt>`` right after it, which is how stage 0 of the curriculum trains explicit rationales.
  3. **Write**: greedily, over the cache, until ``<gen>``, the end of the turn, or the limit.
  4. **Embed**: the state at ``<gen>``. A rationale that ran into the limit is closed by the rest of the suffix first.

  Writing and embedding share one cache: the baseline costs one prefix pass and one step per token, nothing twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plume import PlumeModel, PlumeProcessor
from plume.checks_plume import check_finite
from plume.evaluation.embedders import Embedder, ModelEmbedder, prepare, processor_condition, weights_hash

BASELINES = ("single-pass", "explicit-cot")


@dataclass
class Rationales:
    """What :meth:`ExplicitCoT.think` wrote and read.

    Attributes:
        token_ids: Tokens written, per row, without what was forced (``<elt>``, the closing suffix, ``<gen>``).
        finished: Whether the row ended by itself, ``(B,)`` of bool; the others ran into the limit.
        embeddings: ``(B, D)``, fp32, unit length.
        num_steps: Decoding steps of the batch: those of its longest row.
    """

    token_ids: list[list[int]]
    finished: torch.Tensor
    embeddings: torch.Tensor
    num_steps: int


class ExplicitCoT:
    """UME-R1's way: write the rationale, then embed.

    Args:
        model: The checkpoint, with its LM head.
        processor: Its processor.
        max_new_tokens: Most tokens of a rationale.
        min_new_tokens: Tokens before which no rationale may end; equal to ``max_new_tokens`` it fixes the length.
        checkpoint: What identifies the weights, as in ``ModelEmbedder``.

    Attributes:
        condition: What a reader of its scores must know.

    Raises:
        ValueError: If the limits contradict each other.
    """

    def __init__(
        self,
        model: PlumeModel,
        processor: PlumeProcessor,
        max_new_tokens: int = 1024,
        min_new_tokens: int = 0,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= min_new_tokens <= max_new_tokens:
            raise ValueError(
                f"min_new_tokens={min_new_tokens} and max_new_tokens={max_new_tokens} leave no length for a "
                "rationale. Choose 0 <= min_new_tokens <= max_new_tokens."
            )
        self.model, self.processor = model, processor
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        limits = {"baseline": "explicit-cot", "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        identity = checkpoint or {"hash": weights_hash(model)}
        self.condition = processor_condition(processor, 0) | {
            **limits,
            "dtype": str(model.dtype).removeprefix("torch."),
            "checkpoint": identity,
        }

    def encode(self, inputs: Sequence[Mapping[str, Any]], role: str) -> torch.Tensor:
        """Embed one batch, ``(B, D)``, fp32, unit length, on the CPU; ``role`` as in ``ModelEmbedder``."""
        was_training = self.model.training
        self.model.eval()
        try:
            return self.think(prepare(self.model, self.processor, inputs)).embeddings.cpu()
        finally:
            self.model.train(was_training)

    @torch.inference_mode()
    def think(self, prepared: Mapping[str, torch.Tensor]) -> Rationales:
        """Write the rationales of one batch and embed it.

        Args:
            prepared: Model inputs, from :func:`prepare`. The model is in evaluation mode.

        Raises:
            ValueError: If the batch is padded on the right or lacks a token, or an embedding is not finite.
        """
        config, embed = self.model.config, self.model.get_input_embeddings()
        suffix = torch.tensor(config.suffix_token_ids, device=self.model.device).expand(len(prepared["input_ids"]), -1)
        # 1.-2. Prefix, and the token that opens the rationale.
        context = self.model.read_prefix(
            prepared["input_ids"],
            prepared["attention_mask"],
            self.model.media_of(prepared),
            self.max_new_tokens + suffix.shape[1],
        )
        states_BSD = context.extend(embed(suffix[:, :1]))
        # 3. Write until every row has come to its <gen>.
        gen_BD = torch.empty_like(states_BSD[:, -1])
        finished = torch.zeros(len(suffix), dtype=torch.bool, device=suffix.device)
        written: list[torch.Tensor] = []
        while len(written) < self.max_new_tokens and not finished.all():
            token_B = self._next(states_BSD[:, -1], may_end=len(written) >= self.min_new_tokens)
            states_BSD = context.extend(embed(token_B.unsqueeze(1)))
            arrived = (token_B == config.embedding_token_id) & ~finished
            gen_BD = torch.where(arrived.unsqueeze(1), states_BSD[:, -1], gen_BD)
            finished = finished | arrived
            written.append(token_B)
        # 4. Close the others with the rest of the suffix, which ends in <gen>.
        if not finished.all():
            closing_BD = context.extend(embed(suffix[:, 1:]))[:, -1]
            gen_BD = torch.where(finished.unsqueeze(1), gen_BD, closing_BD)
        embeddings = torch.nn.functional.normalize(gen_BD.float(), dim=-1)
        check_finite(embeddings)
        rows = torch.stack(written, dim=1).tolist() if written else [[] for _ in suffix]
        return Rationales([_until(row, config.embedding_token_id) for row in rows], finished, embeddings, len(written))

    def decode(self, rationales: Rationales) -> list[str]:
        """The rationales as text."""
        return [self.processor.tokenizer.decode(row) for row in rationales.token_ids]

    def _next(self, states_BD: torch.Tensor, may_end: bool) -> torch.Tensor:
        """The likeliest next token, ``(B,)``; the end of the turn counts as ``<gen>``, where the embedding is read."""
        logits_BV = self.model.lm_head(states_BD)
        ends = [self.model.config.embedding_token_id, self.processor.tokenizer.eos_token_id]
        if not may_end:
            logits_BV[:, ends] = float("-inf")
        token_B = logits_BV.argmax(dim=-1)
        return torch.where(token_B == ends[1], ends[0], token_B)


def load(name: str, model: PlumeModel, processor: PlumeProcessor, **options: Any) -> Embedder:
    """A baseline by its name on the command line, over a checkpoint.

    Args:
        name: One of :data:`BASELINES`.
        model: The checkpoint.
        processor: Its processor.
        **options: Of the baseline's class: ``checkpoint``, and the limits of explicit rationales.

    Raises:
        ValueError: If there is no such baseline.
    """
    if name == "single-pass":
        return ModelEmbedder(model, processor, latent_steps=0, **options)
    if name == "explicit-cot":
        return ExplicitCoT(model, processor, **options)
    raise ValueError(f"There is no baseline {name!r}. Choose one of {', '.join(BASELINES)}.")


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
