"""Training: exact gradients in chunks and over ranks, exact resume, and a whole run that ends in a usable checkpoint."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import launch_step
import numpy as np
import pytest
import torch
import yaml
from corpus import make_trainer, write_corpus
from PIL import Image
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from inputs import MEDIA, ROOT, embed
from plume import PlumeForEmbedding, PlumeProcessor
from plume.hub.random_checkpoint import save_random_plume

trl = pytest.importorskip("trl", reason="training needs the extra `train`")

from peft import PeftModel  # noqa: E402
from processes import run_on_two_ranks  # noqa: E402
from trl import ModelConfig  # noqa: E402

from plume.training.collator import PairCollator, chunk_sizes, rewrite, split_rows  # noqa: E402
from plume.training.config import PlumeTrainingConfig  # noqa: E402
from plume.training.data import load_rows  # noqa: E402
from plume.training.train import main, parse  # noqa: E402

TRAJECTORY = Path(__file__).parent / "references" / "trajectory.json"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Folder with 48 pairs with a hard negative each, media, and a tiny model."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, rows=48, negatives=1)
    save_random_plume(folder / "model", num_latent_steps=4, max_latent_steps=8)
    return folder


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def difference(first, second) -> float:
    """Largest difference of gradients, relative to the largest gradient of the parameter's norm over all of them."""
    assert first.keys() == second.keys()
    scale = max(gradient.abs().max().item() for gradient in first.values())
    return max((first[name] - second[name]).abs().max().item() for name in first) / scale


def prepare(trainer, stage_index: int):
    """A trainer at a stage of its curriculum, and a batch with a duplicated target."""
    trainer.create_optimizer_and_scheduler(10)
    trainer.model_wrapped = trainer.model
    trainer.current_gradient_accumulation_steps = 1
    trainer.stage = lambda: trainer.curriculum.stages[stage_index]
    rows = [trainer.train_dataset[index] for index in (0, 1, 2, 3, 4, 0)]
    return trainer.data_collator(rows)


@pytest.mark.parametrize(
    ("stage", "teacher"), [(0, None), (2, None), (4, None), (0, "scores"), (2, "explicit"), (4, "explicit")]
)
@pytest.mark.parametrize(
    "chunk_size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(7, marks=pytest.mark.slow)]
)
def test_chunked_gradients_equal_the_whole_step_s(corpus, tmp_path, stage, teacher, chunk_size):
    """CE, both InfoNCE, balance, ranking, duplicates, hard negatives; 6 pairs and 6 negatives are 18 rows."""
    options = {"balance_weight": 10.0, "temperature": 0.05, "teacher": teacher, "ranking_weight": 3.0}
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0, **options)
    batch = prepare(trainer, stage)
    trainer.current_gradient_accumulation_steps = 2
    whole_loss = trainer.training_step(trainer.model, batch)
    whole = gradients(trainer.model)
    trainer.args.chunk_size = chunk_size
    chunked_loss = trainer.training_step(trainer.model, batch)
    assert chunked_loss.item() == pytest.approx(whole_loss.item(), rel=1e-5)
    assert difference(whole, gradients(trainer.model)) <= 1e-5
    assert ("loss_ranking" in trainer._metrics["train"]) == (teacher is not None)
    for name, (in_one, in_chunks) in trainer._metrics["train"].items():  # health is that of the batch, not of a chunk
        assert in_one == pytest.approx(in_chunks, rel=1e-4, abs=1e-6), name


def test_chunked_gradients_equal_the_whole_step_s_under_autocast(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0, temperature=0.2)
    batch = prepare(trainer, 2)
    found = []
    for chunk_size in (None, 5):
        trainer.args.chunk_size = chunk_size
        with torch.autocast("cpu", dtype=torch.bfloat16):
            trainer.training_step(trainer.model, batch)
        found.append(gradients(trainer.model))
    whole, chunked = found
    assert all(gradient.dtype == torch.float32 for gradient in whole.values())
    assert difference(whole, chunked) <= 0.05


def test_the_pool_is_differentiated_before_any_weight(corpus, tmp_path, monkeypatch):
    """Ranks that chunk differently gather, and exchange gradients of weights, in one order: whole or in chunks."""
    events = []

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows):
            events.append("gather")
            return rows.clone()

        @staticmethod
        def backward(ctx, gradient):
            events.append("gathered")
            return gradient

    monkeypatch.setattr("plume.training.trainer.gather_rows", lambda rows: Gather.apply(rows))
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0)
    batch = prepare(trainer, 0)  # the adapter is touched only
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: events.append("weight"))
    orders = []
    for chunk_size in (None, 5):
        trainer.args.chunk_size = chunk_size
        events.clear()
        trainer.training_step(trainer.model, batch)
        assert "weight" not in events[: max(i for i, event in enumerate(events) if event == "gathered")]
        orders.append([event for event in events if event != "weight"])
    assert orders[0] == orders[1]


def test_hard_negatives_count_in_the_contrast_only(corpus, tmp_path):
    """Cross entropy is that of queries and targets, in one pass and in chunks."""
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0)
    batch = prepare(trainer, 0)
    terms = []
    for num_negatives, chunk_size in ((1, None), (1, 7), (0, None)):
        trainer.data_collator.num_negatives, trainer.args.chunk_size = num_negatives, chunk_size
        batch = trainer.data_collator([trainer.train_dataset[index] for index in (0, 1, 2, 3)])
        trainer.training_step(trainer.model, batch)
        terms.append((trainer._metrics["train"]["loss_ce"][-1], trainer._metrics["train"]["loss_embedding"][-1]))
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)
    assert terms[0][0] == pytest.approx(terms[2][0], rel=1e-5)
    assert terms[0][1] != pytest.approx(terms[2][1], rel=1e-3)


def test_an_optimizer_that_must_be_told_is_told_in_chunks_too(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, chunk_size=5)
    batch, told = prepare(trainer, 1), []
    trainer.optimizer.train = lambda: told.append(True)
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    trainer.training_step(trainer.model, batch)
    assert told


@pytest.mark.parametrize("chunk_size", [1, 2, 18])
def test_chunked_gradients_are_exact_with_dropout(corpus, tmp_path, chunk_size):
    """Against the same chunks without a cache: one graph over all of them, one backward pass."""
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.3, balance_weight=10.0, temperature=0.05)
    batch = prepare(trainer, 4)
    trainer.model.train()
    torch.manual_seed(5)
    chunks = split_rows(rewrite(batch, trainer.stage(), trainer._suffix), [chunk_size] * (18 // chunk_size))
    outputs = [trainer.forward_rows(trainer.model, chunk) for chunk in chunks]
    pool = [torch.cat(column) for column in zip(*(trainer.represent(o).tensors() for o in outputs), strict=True)]
    loss, _ = trainer._pool_loss(type(trainer.represent(outputs[0]))(*pool), batch)
    own = sum(trainer._own_loss(output, chunk, batch)[0] for output, chunk in zip(outputs, chunks, strict=True))
    (loss + own).backward()
    uncached = gradients(trainer.model)
    trainer.args.chunk_size = chunk_size if chunk_size < 18 else 17  # two chunks at least, or there is no cache
    torch.manual_seed(5)
    trainer.training_step(trainer.model, batch)
    if chunk_size < 18:
        assert difference(uncached, gradients(trainer.model)) <= 1e-5
    else:
        assert difference(uncached, gradients(trainer.model)) > 1e-3, "other chunks draw other masks: the test can fail"


def test_chunks_keep_every_row_s_vector(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0)
    batch = prepare(trainer, 3)
    rows = rewrite(batch, trainer.stage(), trainer._suffix)
    with torch.no_grad():
        together = trainer.model(**rows.inputs)
        apart = [trainer.model(**chunk.inputs) for chunk in split_rows(rows, [5, 1, 12])]
    assert (torch.cat([o.embeddings for o in apart]) - together.embeddings).abs().max() <= 1e-5
    scores = torch.cat([o.suffix_log_probs.sum(1) for o in apart])
    assert torch.allclose(scores, together.suffix_log_probs.sum(1), atol=1e-3)


def test_chunks_by_count_and_by_tokens():
    lengths = torch.tensor([10, 10, 30, 10, 100])
    assert chunk_sizes(lengths, None, None) == [5]
    assert chunk_sizes(lengths, 2, None) == [2, 2, 1]
    assert chunk_sizes(lengths, None, 60) == [2, 2, 1]
    assert chunk_sizes(lengths, None, 5) == [1] * 5


def test_suffix_scores_are_log_probabilities_of_the_language_model(corpus):
    model = PlumeForEmbedding.from_pretrained(corpus / "model").eval()
    processor = PlumeProcessor.from_pretrained(corpus / "model")
    features = processor.process_documents(["a red bus", "two dogs"])
    suffix = torch.tensor([[model.config.latent_end_token_id, 70, 71, model.config.embedding_token_id]] * 2)
    mask = torch.tensor([[True] * 4, [True, False, True, True]])
    with torch.no_grad():
        output = model(**features, suffix_input_ids=suffix, suffix_mask=mask)
        logits = model.lm_head(output.suffix_states[:, :-1])
    expected = logits.log_softmax(-1).gather(-1, suffix.unsqueeze(-1)).squeeze(-1) * mask
    assert torch.allclose(output.suffix_log_probs, expected, atol=1e-5)


@pytest.fixture(scope="module")
def steps_of_ranks(corpus, tmp_path_factory) -> Path:
    """Folder of the step of one rank, taken in this process, and of two."""
    folder = tmp_path_factory.mktemp("ranks")
    launch_step.main(corpus, folder, 1)
    run_on_two_ranks(launch_step.main, corpus, folder, 2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 3], ids=["whole", "chunked"])
@pytest.mark.parametrize("name", ["step", "nested", "explicit", "scores"])
def test_two_ranks_equal_one_through_accelerate(steps_of_ranks, name, chunk):
    results = [torch.load(steps_of_ranks / f"{name}-{world}-{chunk}.pt") for world in (1, 2)]
    assert results[0]["gradients"].keys() == results[1]["gradients"].keys()
    assert difference(results[0]["gradients"], results[1]["gradients"]) <= 1e-5
    nested = {"loss_dim_8", "loss_dim_16", "loss_readout_0", "loss_readout_1", "loss_readout_2"}
    more = {"nested": nested, "explicit": {"loss_ranking"}, "scores": {"loss_ranking"}}
    shown = {term for term in results[0]["log"][0] if term.startswith("loss_")}
    assert shown == {"loss_embedding", "loss_anchor", "loss_balance", "loss_ce"} | more.get(name, set())
    for name in shown:
        assert results[0]["log"][0][name] == pytest.approx(results[1]["log"][0][name], rel=1e-4), name


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("workers", "resumed_at"),
    [(0, (3,)), *(pytest.param(workers, (1, 3, 5, 7, 9), marks=pytest.mark.slow) for workers in (0, 2))],
    ids=["one stage", "no workers", "workers"],
)
def test_a_run_resumed_in_any_stage_equals_the_uninterrupted_one(corpus, tmp_path, workers, resumed_at):
    """10 steps over 5 stages of 2 steps, 6 steps an epoch: every resume starts in the middle of a stage."""
    options = {
        "stage_weights": [1.0] * 5, "save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": workers, "chunk_size": 5,
        "stage_lr_scales": [1.0, 0.5, 0.5, 0.5, 0.2], "rewarm_steps": 2, "stage_mixing": 0.3,
    }  # fmt: skip
    whole = make_trainer(corpus, tmp_path / "whole", **options)
    whole.train()
    expected = losses(whole)
    assert len(expected) == 10
    weights = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    for step in resumed_at:
        resumed = make_trainer(corpus, tmp_path / "resumed", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert losses(resumed)[step:] == expected[step:]
        assert all(torch.equal(p, weights[name]) for name, p in resumed.model.named_parameters())
    saved = json.loads((tmp_path / "whole" / "checkpoint-5" / "curriculum.json").read_text())
    assert (saved["step"], saved["stage"], saved["num_latent_steps"]) == (5, 2, 4)
    other = make_trainer(corpus, tmp_path / "other", **{**options, "stage_weights": [2.0] * 5})
    longer = make_trainer(corpus, tmp_path / "longer", **{**options, "max_steps": 11})
    with CaptureLogger(logging.get_logger("plume.training.trainer")) as captured:
        longer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-9"))
    assert "saved by a run of 10 steps, this one has 11" in captured.out
    with pytest.raises(ValueError, match="was saved with stage_weights"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))


@pytest.mark.parametrize(("tower", "merger"), [(True, True), (True, False), (False, True)])
def test_every_trainable_parameter_moves_and_frozen_means_frozen(corpus, tmp_path, tower, merger):
    trainer = make_trainer(
        corpus, tmp_path, freeze_vision=tower, freeze_merger=merger, max_steps=6, stage_weights=[1.0, 1.0, 1.0]
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.isfinite().all()
        moved = not torch.equal(parameter, before[name])
        frozen = (merger if "merger" in name else tower) if "visual" in name else False
        assert moved != frozen, name


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_gradient_checkpointing_gives_the_same_gradients(corpus, tmp_path, chunk_size):
    found = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            corpus, tmp_path, expert_dropout=0.0, activation_checkpointing=checkpointing, chunk_size=chunk_size
        )
        batch = prepare(trainer, 2)
        if checkpointing:
            trainer.model.activation_checkpointing_enable()
        trainer.training_step(trainer.model, batch)
        found.append(gradients(trainer.model))
    assert difference(*found) <= 1e-5


def test_a_nan_loss_stops_the_run_and_names_the_rows(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path)
    table = trainer.model.get_input_embeddings().weight
    row = trainer.train_dataset[0]
    batch = trainer.data_collator([row, trainer.train_dataset[1]])
    own = set(batch["prefix"]["input_ids"][0].tolist()) - set(batch["prefix"]["input_ids"][1].tolist())
    others = set(batch["prefix"]["input_ids"][1:].flatten().tolist())
    with torch.no_grad():
        table[min(own - others or own)] = float("nan")
    trainer.stage = lambda: trainer.curriculum.stages[-1]
    for chunk_size in (None, 1):
        trainer.args.chunk_size = chunk_size
        trainer.current_gradient_accumulation_steps = 1
        with pytest.raises(ValueError, match=r"not finite at step 0.*pairs\.jsonl:1"):
            trainer.training_step(trainer.model, batch)


def arguments_of(corpus, output, *flags) -> list[str]:
    """What a user writes after `training/train.py`."""
    arguments = {
        "--model_name_or_path": corpus / "model", "--train_files": corpus / "pairs.jsonl", "--media_root": corpus / "media",
        "--output_dir": output, "--per_device_train_batch_size": 8, "--sub_batch_size": 4, "--report_to": "none", "--bf16": False,
        "--use_cpu": True, "--logging_steps": 1, "--save_strategy": "no", "--learning_rate": 1e-3, "--seed": 1,
        "--verdict_pairs": 8,
    }  # fmt: skip
    return [*(str(part) for item in arguments.items() for part in item), *flags]


@pytest.fixture
def train(long_corpus, monkeypatch, capsys):
    """The script in this process, over the long corpus: returns what it printed."""
    monkeypatch.setenv("CI", "1")  # no telemetry
    monkeypatch.chdir(long_corpus)

    def run(output, *flags) -> str:
        main(arguments_of(long_corpus, output, *flags))
        return capsys.readouterr().out

    return run


def log_of(said: str) -> list[dict[str, float]]:
    """The steps of a run, as it printed them."""
    steps = [json.loads(line.replace("'", '"')) for line in said.splitlines() if line.startswith("{'loss'")]
    return [{name: float(value) for name, value in step.items()} for step in steps]


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory) -> Path:
    """200 generated pairs and a tiny model."""
    folder = tmp_path_factory.mktemp("long")
    write_corpus(folder, rows=200, seed=3)
    save_random_plume(folder / "model", num_latent_steps=4, max_latent_steps=8)
    return folder


def test_a_whole_run_follows_the_committed_trajectory_and_loads_through_every_entry_point(train, tmp_path, remote):
    """All five stages over 200 pairs; the result loads everywhere."""
    flags = ["--max_steps", "20", "--stage_weights", "8", "2", "2", "2", "6", "--chunk_size", "8"]
    log = log_of(train(tmp_path / "out", *flags))
    assert [step["stage"] for step in log] == [0] * 8 + [1] * 2 + [2] * 2 + [3] * 2 + [4] * 6
    assert [step["loss"] for step in log] == pytest.approx(json.loads(TRAJECTORY.read_text()), rel=2e-3)
    assert_every_entry_point_loads(tmp_path / "out", remote)


def assert_every_entry_point_loads(output, remote) -> None:
    """Package, sentence-transformers and remote code give the same vectors."""
    from sentence_transformers import SentenceTransformer

    items = ["a red box", {"image": str(MEDIA / "bus.png")}]
    model = PlumeForEmbedding.from_pretrained(output).eval()
    vectors = embed(model, PlumeProcessor.from_pretrained(output), items).numpy()
    assert np.abs(SentenceTransformer(str(output)).encode(items) - vectors).max() <= 1e-5
    assert np.abs(remote("transformers", output, items) - vectors).max() <= 1e-5


def test_lora_trains_adapter_and_token_rows_and_saves_a_whole_checkpoint(long_corpus, train, tmp_path, remote):
    output = tmp_path / "lora"
    flags = ["--max_steps", "6", "--stage_weights", *"11112", "--use_peft", "--lora_r", "4", "--chunk_size", "8"]
    log = log_of(train(output, *flags))
    assert [step["stage"] for step in log] == [0, 1, 2, 3, 4, 4]
    expected = json.loads(TRAJECTORY.with_name("trajectory_lora.json").read_text())
    assert [step["loss"] for step in log] == pytest.approx(expected, rel=2e-3)
    assert_every_entry_point_loads(output, remote)
    before = PlumeForEmbedding.from_pretrained(long_corpus / "model")
    after = PlumeForEmbedding.from_pretrained(output)
    changed = {name for name, p in after.named_parameters() if not torch.equal(p, before.state_dict()[name])}
    assert {name for name, _ in after.named_parameters() if "latent_transition" in name} <= changed
    assert not [name for name in changed if "visual" in name]
    rows = (after.get_input_embeddings().weight != before.get_input_embeddings().weight).any(dim=1).nonzero().flatten()
    config = after.config
    assert set(rows.tolist()) <= {
        config.anchor_token_id, config.latent_start_token_id, config.latent_end_token_id, config.embedding_token_id
    }  # fmt: skip
    assert len(rows) >= 3
    unmerged = PeftModel.from_pretrained(PlumeForEmbedding.from_pretrained(long_corpus / "model"), output / "lora")
    merged = unmerged.merge_and_unload().state_dict()
    assert all(torch.allclose(merged[name], weight, atol=1e-6) for name, weight in after.state_dict().items())
    assert not list(output.glob("adapter_*"))  # loaders would take the folder for LoRA weights alone
    assert torch.isfinite(embed(after.eval(), PlumeProcessor.from_pretrained(output), ["a red box"])).all()


@pytest.mark.slow
def test_a_plain_backbone_is_trained_from_the_command_line(long_corpus, train, backbone, tmp_path):
    some = tmp_path / "some.jsonl"
    some.write_text("".join((long_corpus / "pairs.jsonl").read_text().splitlines(keepends=True)[:12]))
    said = train(tmp_path / "out", "--model_name_or_path", str(backbone), "--max_steps", "2", "--num_latent_steps", "2",
                 "--eval_files", str(some), "--eval_strategy", "steps", "--eval_steps", "2")  # fmt: skip
    assert "eval_hit@1" in said
    assert PlumeForEmbedding.from_pretrained(tmp_path / "out").config.num_latent_steps == 2


def test_dry_run_prints_stages_and_rewritten_samples_and_trains_nothing(train, tmp_path):
    said = train(tmp_path / "out", "--dry_run", "--num_train_epochs", "5")
    assert "200 pairs, 125 optimizer steps, 8 pairs in a contrastive pool" in said
    assert "final_schedule True: the last stage is not the tail of a decay" in said
    assert "last 1/4 of the rationale, answer" in said
    assert "[stage 4] <ct><ct><ct><ct><elt><gen>\n" in said
    assert said.rstrip().endswith(" s per step, measured on two of the last stage")
    assert not (tmp_path / "out").exists()
    said = train(tmp_path / "out", "--dry_run", "--max_steps", "8", "--stage_weights", *"10101")
    assert "[stage 2] <ct><ct><elt> The inside is" in said
    assert [line[:9] for line in said.splitlines() if line.startswith("[stage ")] == [
        "[stage 0]",
        "[stage 2]",
        "[stage 4]",
    ]
    assert "last 3/4" not in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_files", "absent.jsonl"], "does not exist"),
        (["--stage_weights", "1"], "no schedule"),
        (["--stage_lr_scales", "1", "1"], "one factor per stage"),
        (["--num_latent_steps", "99"], "outside 0..8"),
        (["--layout", "other"], "layout 'other' is unknown"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--teacher_temperature", "0"], "teacher_temperature must be above 0"),
        (["--teacher", "other"], "teacher='other' is unknown"),
        (["--teacher", "scores"], "no row has them"),
        (["--max_pixels", "0"], "min_pixels=.* exceeds max_pixels=0"),
        (["--media_root", "."], "Name the folder that paths are relative to with --media_root"),
        (["--column", "query"], "--column query renames nothing"),
        (["--streaming", "--skip_bad_rows"], "Drop one of the two"),
    ],
)
def test_impossible_runs_are_refused_with_the_cause(train, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", "--max_steps", "1", *flags)


def test_the_collator_shortens_the_user_s_text_only(corpus):
    processor = PlumeProcessor.from_pretrained(corpus / "model")
    row = json.loads((corpus / "pairs.jsonl").read_text().splitlines()[0])
    row["qry"]["conversations"][0]["value"] = "<image>\n" + "find it " * 500 + "\n<disc_emb>\nRepresent"
    batch = PairCollator(processor, str(corpus / "media"), max_length=60)([{"row": json.dumps(row), "place": "x:1"}])
    ids = batch["prefix"]["input_ids"]
    fields = processor.token_fields()
    assert ids.shape[1] <= 60
    assert (ids[:, -1] == fields["latent_start_token_id"]).all()
    assert ((ids == fields["anchor_token_id"]).sum(dim=1) == 1).all()


def test_a_pair_without_a_rationale_is_trained_on_its_answer(corpus):
    processor = PlumeProcessor.from_pretrained(corpus / "model")
    silent = {"conversations": [{"from": "human", "value": "a box"}, {"from": "gpt", "value": "<answer>red"}]}
    row = {"row": json.dumps({"qry": silent, "pos": silent}), "place": "x:1"}
    batch = PairCollator(processor)([row])
    from plume.training.curriculum import Curriculum

    suffix = processor.token_fields()["suffix_token_ids"]
    texts = [
        processor.tokenizer.decode(rewrite(batch, stage, suffix).inputs["suffix_input_ids"][0])
        for stage in Curriculum(4).stages
    ]
    assert texts == ["<elt><answer>red</answer><gen>"] * 4 + ["<elt><gen>"]


def test_control_tokens_in_a_rationale_are_plain_text(corpus):
    """<gen> in a rationale would be the place of the embedding, <elt> the end of thinking."""
    processor = PlumeProcessor.from_pretrained(corpus / "model")
    thought = f"{processor.embedding_token} is written here. So is {processor.latent_end_token}."
    fields = {
        "query": "a",
        "positive": "b",
        "rationale_query": f"<think>{thought}</think><answer>c{processor.anchor_token}</answer>",
    }
    batch = PairCollator(processor)([{"row": json.dumps(fields), "place": "x:1"}])
    found = batch["texts"].rows[0]
    ids = [token for segment in found.segments for token in segment]
    control = {token for token in processor.token_fields().values() if isinstance(token, int)}
    assert not control & {*ids, *found.answer}
    assert processor.tokenizer.decode(ids).replace(" ", "").endswith("Sois<elt>.")
    assert len(found.segments) == 2


def test_a_second_loss_that_is_a_sum_over_rows_has_a_name_of_its_own(corpus, tmp_path):
    """Whole and in chunks: it is not added to the cross entropy, and counts in the loss."""
    logged = []
    for weight, chunk_size in ((0.0, None), (2.0, None), (2.0, 5)):
        trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0, chunk_size=chunk_size)
        batch, own_loss = prepare(trainer, 2), trainer._own_loss

        def with_norm(output, rows, batch, own_loss=own_loss, weight=weight):
            own, terms = own_loss(output, rows, batch)
            norm = output.latent_states.abs().sum() / batch["num_pairs"]
            return own + weight * norm, {**terms, "norm": norm}

        trainer._own_loss = with_norm
        loss = trainer.training_step(trainer.model, batch).item()
        logged.append((loss, *(trainer._metrics["train"][f"loss_{name}"][-1] for name in ("ce", "norm"))))
    (plain, ce, norm), whole, chunked = logged
    assert whole == pytest.approx((plain + 2 * norm, ce, norm), rel=1e-5)
    assert chunked == pytest.approx(whole, rel=1e-5)
    assert norm > 1


def test_stages_are_rewritten_late(corpus):
    """One batch serves every stage: the workers know none."""
    processor = PlumeProcessor.from_pretrained(corpus / "model")
    collate = PairCollator(processor, str(corpus / "media"))
    batch = collate([load_rows([str(corpus / "pairs.jsonl")])[0]])
    model = PlumeForEmbedding.from_pretrained(corpus / "model")
    from plume.training.curriculum import Curriculum

    suffix, widths = model.config.suffix_token_ids, []
    for stage in Curriculum(4).stages:
        rows = rewrite(batch, stage, suffix)
        widths.append(rows.inputs["suffix_input_ids"].shape[1])
        assert rows.inputs["num_latent_steps"] == stage.num_latent_steps
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == len(suffix)
    text = processor.tokenizer.decode(rewrite(batch, Curriculum(4).stages[0], suffix).inputs["suffix_input_ids"][0])
    assert text.startswith("<elt>The outside is ")
    assert "It is 3.5 cm wide." in text
    assert text.endswith("</answer><gen>")
    assert replace(Curriculum(4).stages[0], index=4).is_final


def test_settings_without_effect_are_refused(tmp_path):
    with pytest.raises(ValueError, match="packing, completion_only_loss|completion_only_loss, packing"):
        PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, packing=True, completion_only_loss=True)


def test_settings_that_evaluation_cannot_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_eval_metrics, include_for_metrics: Hit@1"):
        PlumeTrainingConfig(
            output_dir=str(tmp_path), use_cpu=True, batch_eval_metrics=True, include_for_metrics=["inputs"]
        )


def test_the_data_seed_orders_the_pairs(corpus, tmp_path):
    orders = [
        list(make_trainer(corpus, tmp_path, seed=seed, data_seed=data_seed)._get_train_sampler())
        for seed, data_seed in ((1, None), (1, 7), (7, None))
    ]
    assert orders[0] != orders[1] == orders[2]


@pytest.mark.parametrize("start", ["plume", "backbone"])
def test_the_revision_of_the_model_reaches_every_file(start, long_corpus, backbone, monkeypatch):
    from plume.training import train

    opened = {
        "plume": [(train.AutoConfig, "from_pretrained"), (train.AutoModel, "from_pretrained"),
                  (train.AutoProcessor, "from_pretrained")],
        "backbone": [(train.AutoConfig, "from_pretrained"), (train, "from_backbone")],
    }[start]  # fmt: skip
    asked: dict[str, str] = {}
    for owner, method in opened:
        real, key = getattr(owner, method), f"{owner.__name__}.{method}"

        def record(*args, _real=real, _key=key, **kwargs):
            revision = kwargs.get("revision", kwargs.get("model_options", {}).get("revision"))
            asked.setdefault(_key, revision)  # transformers asks again on its own
            return _real(*args, **kwargs)

        monkeypatch.setattr(owner, method, record)
    name = long_corpus / "model" if start == "plume" else backbone
    train.load_model(ModelConfig(model_name_or_path=str(name), model_revision="v2", dtype="float32"), "paper")
    assert asked == {f"{owner.__name__}.{method}": "v2" for owner, method in opened}


def test_the_processor_of_a_backbone_is_built_once(backbone, monkeypatch):
    from plume import start
    from plume.training import train

    built, build = [], start.build_processor
    monkeypatch.setattr(start, "build_processor", lambda *args, **kwargs: built.append(args) or build(*args, **kwargs))
    _, processor = train.load_model(ModelConfig(model_name_or_path=str(backbone), dtype="float32"), "released")
    assert len(built) == 1
    assert (processor.query_prompt, processor.blank_image_size) == ("", 28)


def test_the_largest_area_of_a_picture_holds_in_the_run_and_is_saved(train, tmp_path, monkeypatch):
    from plume.training.trainer import PlumeTrainer

    areas, step = [], PlumeTrainer.training_step

    def record(self, model, inputs, *args):
        areas.extend(inputs["prefix"]["image_grid_thw"].prod(dim=1).tolist())
        return step(self, model, inputs, *args)

    monkeypatch.setattr(PlumeTrainer, "training_step", record)
    Image.new("RGB", (112, 112)).save(tmp_path / "large.png")
    (tmp_path / "pairs.csv").write_text("query,positive\n" + "a,large.png\n" * 8)
    flags = [
        "--train_files",
        str(tmp_path / "pairs.csv"),
        "--media_root",
        str(tmp_path),
        "--max_steps",
        "1",
        "--verdict_pairs",
        "0",
    ]
    for more in ([], ["--max_pixels", "3136"]):  # of 112 by 112 pixels, or 56 by 56
        areas.clear()
        train(tmp_path / "out", *flags, *more)
        assert set(areas) == ({16} if more else {64})
    assert PlumeProcessor.from_pretrained(tmp_path / "out").max_pixels == 3136


@pytest.mark.slow
def test_bad_rows_are_left_out_only_when_asked(long_corpus, train, tmp_path):
    lines = (long_corpus / "pairs.jsonl").read_text().splitlines()[:24]
    spoilt = [line.replace(".png", ".gone") if index == 5 else line for index, line in enumerate(lines)]
    (tmp_path / "spoilt.jsonl").write_text("\n".join(spoilt))
    flags = ["--train_files", str(tmp_path / "spoilt.jsonl"), "--max_steps", "3"]
    with pytest.raises(ValueError, match=r"spoilt\.jsonl:6 cannot be trained on"):
        train(tmp_path / "out", *flags)
    # It can be opened, but not be cut into patches.
    Image.new("RGB", (9000, 30)).save(long_corpus / "media" / "banner.png")
    picture = json.loads(lines[0])["qry"]["image"]
    spoilt[0] = lines[0].replace(picture, "banner.png")
    (tmp_path / "spoilt.jsonl").write_text("\n".join(spoilt))
    with CaptureLogger(logging.get_logger("plume.training.train")) as captured:
        train(tmp_path / "out", *flags, "--skip_bad_rows")
    assert "2 of 24 rows are left out: {'cannot be encoded': 1, 'missing media': 1}" in captured.out
    assert "spoilt.jsonl:6: " in captured.out


@pytest.mark.slow
def test_a_streamed_corpus_is_trained_on(train, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        said = train(tmp_path / "out", "--streaming", "--max_steps", "2", "--dataloader_num_workers", "1")
    assert len(log_of(said)) == 2


@pytest.mark.parametrize("recipe", sorted((ROOT / "training" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(recipe, tmp_path):
    script, args, model, given = parse(
        ["--config", str(recipe), "--train_files", "x.jsonl", "--use_cpu", "--output_dir", str(tmp_path)]
    )
    assert script.train_files == ["x.jsonl"]
    written = yaml.safe_load(recipe.read_text())
    assert written.keys() <= given
    found = {**vars(model), **vars(args), **vars(script), "max_length": args.prefix_max_length}
    for name in written.keys() - {"output_dir", "train_files", "use_cpu", "report_to"}:
        kind = type(written[name])
        assert (kind(found[name]) if kind in (int, float) else found[name]) == written[name], name


def test_evaluation_counts_every_row(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, per_device_eval_batch_size=8)
    seen = []
    trainer.compute_metrics = lambda prediction: seen.append(len(prediction.label_ids)) or {}
    trainer.evaluate(trainer.train_dataset.select(range(13)))
    assert seen == [13]
    assert trainer.args.dataloader_drop_last


def test_chunks_keep_the_white_image_of_text_only_rows(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0)
    trainer.data_collator.processor.blank_image_size = 28
    batch = prepare(trainer, 4)
    trainer.training_step(trainer.model, batch)
    whole = gradients(trainer.model)
    trainer.args.chunk_size = 5
    trainer.training_step(trainer.model, batch)
    assert difference(whole, gradients(trainer.model)) <= 1e-5


def test_collapse_raises_an_alarm(caplog):
    from plume.training import diagnostics

    steady = torch.randn(3, 1, 16).expand(3, 4, 16)
    one = torch.zeros(3, 4, 4)
    one[..., 0] = 1.0
    health = diagnostics.describe_latents(steady, one)
    assert health["latent_cosine"] == pytest.approx(1, abs=1e-4)
    assert health["latent_rank"] == pytest.approx(1, abs=1e-2)
    assert health["expert_mass"] == 1.0
    orthogonal = diagnostics.describe_latents(torch.eye(4).expand(3, 4, 4), torch.full((3, 4, 4), 0.25))
    assert orthogonal == pytest.approx({"latent_cosine": 0.0, "latent_rank": 4.0, "expert_mass": 0.25}, abs=1e-4)
    warned = []
    diagnostics.logger.warning, before = warned.append, diagnostics.logger.warning
    try:
        diagnostics.warn_of_collapse(orthogonal, 4)
        diagnostics.warn_of_collapse({"expert_mass": 1.0}, 1)  # there is no other
        assert warned == []
        diagnostics.warn_of_collapse(health, 4)
    finally:
        diagnostics.logger.warning = before
    assert len(warned) == 2


def test_retrieval_metrics_count_ties_against_the_model():
    from transformers import EvalPrediction

    from plume.training.diagnostics import retrieval_metrics

    corners, identities = np.eye(6, dtype=np.float32), np.arange(6)
    assert retrieval_metrics(EvalPrediction((corners, corners), identities))["hit@1"] == 1
    constant = np.ones((6, 6), dtype=np.float32)
    assert retrieval_metrics(EvalPrediction((constant, constant), identities)) == {"hit@1": 0.0, "hit@5": 0.0}
    shared = np.array([0, 0, 1, 1, 2, 2])
    targets = corners[shared]
    assert retrieval_metrics(EvalPrediction((targets, targets), shared))["hit@1"] == 1, "equal targets are one item"


def test_the_card_of_a_run_tells_how_it_was_trained(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, max_steps=1, stage_weights=[0, 1])
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "latent-reasoning" in card
    assert "## Training" in card
    assert "contrastive pool of 8 pairs" in card


@pytest.mark.parametrize("teacher", [None, "explicit", "scores"])
@pytest.mark.parametrize("chunk_size", [None, 5], ids=["whole", "chunked"])
def test_a_step_has_the_gradients_of_the_summed_objective(corpus, tmp_path, chunk_size, teacher):
    """Against one plain graph over Eq. 8, where the balance term counts as much as the others."""
    options = {"balance_weight": 1e4, "temperature": 0.2, "teacher": teacher}
    trainer = make_trainer(corpus, tmp_path, expert_dropout=0.0, **options)
    batch = prepare(trainer, 4)
    trainer.model.train()
    rows = rewrite(batch, trainer.stage(), trainer._suffix)
    output = trainer.forward_rows(trainer.model, rows)
    pool, _ = trainer._pool_loss(trainer.represent(output), batch)
    (pool + trainer._own_loss(output, rows, batch)[0]).backward()
    plain = gradients(trainer.model)
    trainer.args.chunk_size = chunk_size
    trainer.training_step(trainer.model, batch)
    stepped = gradients(trainer.model)
    router = [name for name in plain if "router" in name]
    assert router
    assert max(plain[name].abs().max() for name in router) > 1e-3
    found = {name: gradient for name, gradient in stepped.items() if name in plain}  # the step touches all of them
    assert difference(plain, found) <= 1e-5
    assert difference({n: plain[n] for n in router}, {n: stepped[n] for n in router}) <= 1e-4


def test_evaluation_is_at_the_final_stage(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path, per_device_eval_batch_size=8, stage_weights=[1, 1, 1], max_steps=3)
    trainer.train()
    trainer.state.global_step = 0  # the schedule is at stage 0
    trainer.evaluate(trainer.train_dataset.select(range(8)))
    logged = trainer.state.log_history[-1]
    assert (logged["eval_stage"], logged["eval_num_latent_steps"]) == (2, 4)


def test_hits_count_the_first_and_the_first_five_places():
    """Six queries whose own target is at place 1, 2, 2, 5, 6, 6."""
    from transformers import EvalPrediction

    from plume.training.diagnostics import retrieval_metrics

    targets = np.eye(6, dtype=np.float32)
    queries = np.zeros((6, 6), dtype=np.float32)
    for row, place in enumerate((1, 2, 2, 5, 6, 6)):
        others = [column for column in range(6) if column != row]
        queries[row, others[: place - 1]] = 2.0
        queries[row, row] = 1.0
    found = retrieval_metrics(EvalPrediction((queries, targets), np.arange(6)))
    assert found == pytest.approx({"hit@1": 1 / 6, "hit@5": 4 / 6})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "rewarm_steps": 2},
            "reduce_lr_on_plateau follows the loss",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "stage_lr_scales": [1] * 5},
            "follows the loss",
        ),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "epoch", "rewarm_steps": 2}, "greedy follows the loss"),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "epoch", "final_schedule": True}, "greedy follows the loss"),
        ({"eval_do_concat_batches": False}, "eval_do_concat_batches: Hit@1"),
    ],
)
def test_options_that_would_fail_in_the_middle_of_a_run_are_refused_before_it(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_the_precision_is_what_the_device_computes_in(tmp_path, monkeypatch):
    from plume.training import config

    monkeypatch.setattr(config, "is_torch_bf16_gpu_available", lambda: False)
    with CaptureLogger(logging.get_logger("plume.training.config")) as captured:
        asked = PlumeTrainingConfig(output_dir=str(tmp_path), bf16=True)
    assert not asked.bf16
    assert "no GPU here computes in bfloat16, so this run computes in float32" in captured.out
    with CaptureLogger(logging.get_logger("plume.training.config")) as captured:
        assert not PlumeTrainingConfig(output_dir=str(tmp_path)).bf16
        assert PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, bf16=True).bf16, "asked for on a CPU"
    assert captured.out == ""


def test_an_option_that_nobody_set_raises_no_deprecation_warning(tmp_path, recwarn):
    args = PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True)
    assert not args.activation_checkpointing
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]
    assert PlumeTrainingConfig(output_dir=str(tmp_path), use_cpu=True, activation_checkpointing=True)
