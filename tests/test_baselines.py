"""Baselines: the same inputs, prompts and weights; the explicit rationale is the greedy one and is read exactly."""

import pytest
import torch

from inputs import mixed_inputs, noise_image, noise_video
from plume.evaluation.baselines import ExplicitCoT, load
from plume.evaluation.embedders import ModelEmbedder, prepare

LIMIT = 12


def as_dicts(inputs):
    keyed = []
    for item in inputs:
        keyed.append(item if isinstance(item, dict) else {"text": item} if isinstance(item, str) else {"image": item})
    return keyed


INPUTS = as_dicts(mixed_inputs()[:6])


@pytest.fixture
def model(model):
    """With an LM head of its own: tied to the embeddings, a random model repeats one token for ever."""
    weights = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    model.lm_head.weight = torch.nn.Parameter(weights)
    return model


def reference_rationale(model, processor, item, limit, can_end=lambda written: True):
    """One row, no cache, no rollout: the whole sequence through the plain language model for every token."""
    config = model.config
    inputs = processor.process_documents([item], prompt="")
    media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    ids = torch.cat([inputs["input_ids"], torch.tensor([[config.latent_end_token_id]])], dim=1)
    ends = [config.embedding_token_id, processor.tokenizer.eos_token_id]
    written = []

    def read(ids):
        output = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), causal_lm=True, output_hidden_states=True, **media
        )
        return output.logits[0, -1], torch.nn.functional.normalize(output.hidden_states[-1][0, -1].float(), dim=-1)

    with torch.no_grad():
        while len(written) < limit:
            logits, _ = read(ids)
            if not can_end(len(written)):
                logits[ends] = float("-inf")
            token = logits.argmax().item()
            if token in ends:
                break
            written.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        gen = torch.tensor([[config.embedding_token_id]])
        return written, read(torch.cat([ids, gen], dim=1))[1]


def make_it_stop(model, processor, after=3):
    """Bend the LM head so that rationales end by themselves, at different places."""
    explicit = ExplicitCoT(model, processor, max_new_tokens=LIMIT)
    written = explicit.think(prepare(model, processor, INPUTS)).token_ids
    head = model.lm_head.weight.detach().clone()
    # <gen> becomes as likely as a token that the first row writes at its fourth place; <|im_end|> likewise for another.
    head[model.config.embedding_token_id] = 1.01 * head[written[0][after]]
    head[processor.tokenizer.eos_token_id] = 1.01 * head[written[1][after + 2]]
    model.lm_head.weight = torch.nn.Parameter(head)


@pytest.mark.parametrize("ends_by_itself", [False, True])
def test_explicit_rationale_and_embedding_equal_a_cacheless_reference_one_row_at_a_time(
    model, processor, ends_by_itself
):
    if ends_by_itself:
        make_it_stop(model, processor)
    explicit = ExplicitCoT(model, processor, max_new_tokens=LIMIT)
    rationales = explicit.think(prepare(model, processor, INPUTS))
    assert rationales.finished.any() == ends_by_itself
    for row, item in enumerate(INPUTS):
        written, vector = reference_rationale(model, processor, item, LIMIT)
        assert rationales.token_ids[row] == written
        assert rationales.finished[row] == (len(written) < LIMIT)
        assert (rationales.embeddings[row] - vector).abs().max() <= 1e-5
    assert all(len(set(row)) > 1 for row in rationales.token_ids)
    lengths = {len(row) for row in rationales.token_ids}
    assert len(lengths) > 1 if ends_by_itself else lengths == {LIMIT}


def test_greedy_tokens_equal_those_of_generate(model, processor):
    explicit = ExplicitCoT(model, processor, max_new_tokens=LIMIT)
    prepared = prepare(model, processor, INPUTS)
    rationales = explicit.think(prepared)
    opening = torch.full((len(INPUTS), 1), model.config.latent_end_token_id)
    grown = {
        **prepared,
        "input_ids": torch.cat([prepared["input_ids"], opening], dim=1),
        "attention_mask": torch.cat([prepared["attention_mask"], torch.ones_like(opening)], dim=1),
    }
    ids = model.generate(
        **grown,
        max_new_tokens=LIMIT,
        do_sample=False,
        eos_token_id=[model.config.embedding_token_id, processor.tokenizer.eos_token_id],
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    assert ids[:, grown["input_ids"].shape[1] :].tolist() == rationales.token_ids


def test_a_batch_writes_and_embeds_what_single_inputs_do_in_any_order(model, processor):
    make_it_stop(model, processor)
    explicit = ExplicitCoT(model, processor, max_new_tokens=LIMIT)
    together = explicit.encode(INPUTS, "document")
    alone = torch.cat([explicit.encode([item], "document") for item in INPUTS])
    backwards = explicit.encode(INPUTS[::-1], "document").flip(0)
    assert (together - alone).abs().max() <= 1e-5
    assert (together - backwards).abs().max() <= 1e-5


def test_no_rationale_is_the_single_pass(model, processor):
    explicit = ExplicitCoT(model, processor, max_new_tokens=0).encode(INPUTS, "document")
    single = load("single-pass", model, processor).encode(INPUTS, "document")
    assert (explicit - single).abs().max() <= 1e-5


def test_minimum_length_holds_the_end_back(model, processor):
    make_it_stop(model, processor)
    free = ExplicitCoT(model, processor, max_new_tokens=LIMIT)
    shortest = min(len(row) for row in free.think(prepare(model, processor, INPUTS)).token_ids)
    assert shortest < LIMIT
    fixed = ExplicitCoT(model, processor, max_new_tokens=LIMIT, min_new_tokens=LIMIT)
    rationales = fixed.think(prepare(model, processor, INPUTS))
    assert {len(row) for row in rationales.token_ids} == {LIMIT}
    written, vector = reference_rationale(model, processor, INPUTS[0], LIMIT, can_end=lambda n: n >= LIMIT)
    assert rationales.token_ids[0] == written
    assert (rationales.embeddings[0] - vector).abs().max() <= 1e-5


def test_plume_and_baselines_give_the_same_kind_of_vector_but_not_the_same_vector(model, processor):
    systems = [
        ModelEmbedder(model, processor),
        load("single-pass", model, processor),
        load("explicit-cot", model, processor, max_new_tokens=LIMIT),
    ]
    vectors = [system.encode(INPUTS, "query") for system in systems]
    for vector in vectors:
        assert vector.shape == (len(INPUTS), model.config.text_config.hidden_size)
        assert vector.dtype == torch.float32
        assert torch.allclose(vector.norm(dim=-1), torch.ones(len(INPUTS)), atol=1e-5)
    assert min((a - b).abs().max() for a in vectors for b in vectors if a is not b) > 1e-2
    conditions = [repr(sorted(system.condition.items())) for system in systems]
    assert len(set(conditions)) == len(systems), "results of different systems must not look alike"


def test_single_pass_is_the_model_at_k_0(model, processor):
    inputs = [{"image": noise_image(1), "text": "a red bus"}, {"video": noise_video(2)}]
    with torch.no_grad():
        expected = model(**prepare(model, processor, inputs), num_latent_steps=0).embeddings
    assert torch.equal(load("single-pass", model, processor).encode(inputs, "query"), expected)


def test_prepared_inputs_keep_every_frame_and_add_no_instruction(model, processor):
    frames = processor.num_frames + 4
    prepared = prepare(model, processor, [{"video": noise_video(1, frames), "text": "a red bus"}])
    assert prepared["video_grid_thw"][0, 0] == frames // processor.temporal_patch_size
    assert processor.query_prompt not in processor.tokenizer.decode(prepared["input_ids"][0])


def test_embedding_leaves_a_model_in_training_where_it_was(model, processor):
    model.train()
    explicit = ExplicitCoT(model, processor, max_new_tokens=2)
    assert torch.equal(explicit.encode(INPUTS[:1], "query"), explicit.encode(INPUTS[:1], "query"))
    assert model.training


def test_the_first_gen_of_a_row_is_its_embedding_whatever_the_row_writes_while_others_go_on(
    model, processor, monkeypatch
):
    gen, flags = model.config.embedding_token_id, []
    script = iter([[gen, 7], [gen, 8], [9, gen]])
    explicit = ExplicitCoT(model, processor, max_new_tokens=5, min_new_tokens=2)
    monkeypatch.setattr(
        explicit, "_next", lambda states, may_end: (flags.append(may_end), torch.tensor(next(script)))[1]
    )
    rationales = explicit.think(prepare(model, processor, INPUTS[:2]))
    assert rationales.token_ids == [[], [7, 8]]
    assert rationales.num_steps == 3
    assert flags == [False, False, True]
    at_once = load("single-pass", model, processor).encode(INPUTS[:1], "query")
    assert (rationales.embeddings[0] - at_once[0]).abs().max() <= 1e-5


def test_mistakes_are_named(model, processor):
    with pytest.raises(ValueError, match="no baseline 'cot'"):
        load("cot", model, processor)
    with pytest.raises(ValueError, match="leave no length"):
        ExplicitCoT(model, processor, max_new_tokens=3, min_new_tokens=4)
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        ExplicitCoT(model, processor, max_new_tokens=1).encode([{"text": "a"}], "query")
