"""The embedding itself: independent of batch, cache and attention kernel, and equal to the paper read literally."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from inputs import MEDIA, checkpoint_activations, embed, mixed_inputs, noise_image, noise_video
from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)
from plume.cache_plume import CachedContext, RecomputedContext
from plume.hub.random_checkpoint import save_random_plume
from reference import embed_row

VECTORS = Path(__file__).parent / "references" / "vectors.json"


def shuffled_batches(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    order, batches = rng.permutation(count).tolist(), []
    while order:
        size = int(rng.integers(1, 8))
        batches.append(order[:size])
        order = order[size:]
    return batches


@pytest.mark.parametrize("scheme", ["mrope", "kv_length"])
def test_embedding_equals_the_paper_read_literally(model, processor, scheme):
    model.config.position_scheme = scheme
    for item in mixed_inputs():
        features = processor.process_queries([item])
        with torch.no_grad():
            output = model(**features)
            gen, anchor = embed_row(model, features, num_latent_steps=3)
        assert (output.embeddings[0] - gen).abs().max() <= 1e-5
        assert (output.anchor_embeddings[0] - anchor).abs().max() <= 1e-5


def test_position_schemes_differ_where_media_are_and_agree_on_text(model, processor):
    clip = {"video": [noise_image(seed, 128, 128) for seed in range(4)]}
    features = processor.process_documents(["a red bus", noise_image(0, 128, 128), clip], max_pixels=4 * 128 * 128)
    vectors = []
    for model.config.position_scheme in ("mrope", "kv_length"):
        with torch.no_grad():
            vectors.append(model(**features).embeddings)
    moved = (vectors[0] - vectors[1]).abs().amax(dim=-1)
    assert moved[0] <= 1e-6
    assert (moved[1:] > 1e-3).all()


def test_batch_equals_singles_in_any_order_and_mixture(model, processor):
    inputs = mixed_inputs()
    singles = torch.cat([embed(model, processor, [item]) for item in inputs])
    for seed in range(3):
        for rows in shuffled_batches(len(inputs), seed):
            together = embed(model, processor, [inputs[row] for row in rows])
            assert (together - singles[rows]).abs().max() <= 1e-5


def test_batch_equals_singles_in_bfloat16(tmp_path):
    _, processor = save_random_plume(tmp_path, "small", num_latent_steps=3)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    inputs = mixed_inputs()
    singles = torch.cat([embed(model, processor, [item]) for item in inputs])
    for rows in shuffled_batches(len(inputs)):
        together = embed(model, processor, [inputs[row] for row in rows])
        assert together.dtype == torch.float32
        assert (together - singles[rows]).abs().max() <= 5e-3
        assert (1 - (together * singles[rows]).sum(-1)).max() <= 1e-3


@pytest.mark.parametrize("scheme", ["mrope", "kv_length"])
@pytest.mark.parametrize("num_latent_steps", [0, 1, 3, 8])
def test_cached_rollout_equals_recomputation(model, processor, monkeypatch, scheme, num_latent_steps):
    model.config.position_scheme = scheme
    features = processor.process_queries(mixed_inputs()[:6])
    with torch.no_grad():
        cached = model(**features, num_latent_steps=num_latent_steps)
        monkeypatch.setattr("plume.cache_plume.CachedContext", RecomputedContext)
        recomputed = model(**features, num_latent_steps=num_latent_steps)
    for name in ("embeddings", "anchor_embeddings", "router_probs"):
        assert torch.allclose(cached[name], recomputed[name], atol=1e-5)


@pytest.mark.parametrize("context", [CachedContext, RecomputedContext])
@pytest.mark.parametrize("options", [None, {}, {"use_reentrant": True}])
def test_gradient_checkpointing_changes_no_vector_and_no_gradient(checkpoint, processor, monkeypatch, context, options):
    monkeypatch.setattr("plume.cache_plume.CachedContext", context)
    features = processor.process_queries(mixed_inputs()[:6])
    results = []
    for checkpointing in (False, True):
        model = AutoModel.from_pretrained(checkpoint, expert_dropout=0.0).train()
        if checkpointing:
            checkpoint_activations(model, options)
        output = model(**features)
        output.embeddings[:, 0].sum().backward()
        results.append((output.embeddings.detach(), model.model.language_model.layers[0].mlp.up_proj.weight.grad))
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-5
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4)


def test_no_latent_steps_equals_one_plain_pass(model, processor):
    features = processor.process_documents(["a red bus", "two dogs on a sofa and more words"])
    suffix = torch.tensor(model.config.suffix_token_ids).expand(2, -1)
    mask = torch.cat([features["attention_mask"], torch.ones_like(suffix)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    with torch.no_grad():
        plain = model.model.language_model(
            input_ids=torch.cat([features["input_ids"], suffix], dim=1),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state[:, -1]
        output = model(**features, num_latent_steps=0)
    assert (output.embeddings - torch.nn.functional.normalize(plain, dim=-1)).abs().max() <= 1e-6
    assert output.latent_states.shape == (2, 0, 32)
    assert output.router_probs.shape == (2, 0, 4)


def test_fused_tail_equals_reading_the_suffix_afterwards(model, processor):
    features = processor.process_documents(["a red bus", "two dogs on a sofa"])
    with torch.no_grad():
        fused = model(**features)
        # Unfused: the same rollout with a suffix of one throw-away token, then the real suffix after z(K).
        context = model.read_prefix(
            features["input_ids"],
            features["attention_mask"],
            model.media_of({}),
            model.config.num_latent_steps + len(model.config.suffix_token_ids),
        )
        assert isinstance(context, CachedContext)
        z, anchor_at = context.hidden[:, -1], (features["input_ids"] == model.config.anchor_token_id).int().argmax(-1)
        anchor = context.hidden[torch.arange(2), anchor_at]
        for k in range(1, model.config.num_latent_steps + 1):
            z = context.extend(model.latent_transition(z, k, anchor)[0].unsqueeze(1))[:, 0]
        suffix = torch.tensor(model.config.suffix_token_ids).expand(2, -1)
        unfused = context.extend(model.get_input_embeddings()(suffix))
    assert (fused.suffix_states[:, 0] - z).abs().max() <= 1e-5
    assert (fused.suffix_states[:, 1:] - unfused).abs().max() <= 1e-5


def test_sdpa_equals_eager(checkpoint, processor):
    inputs = mixed_inputs()[:12]
    sdpa, eager = (
        embed(AutoModel.from_pretrained(checkpoint, attn_implementation=kernel).eval(), processor, inputs)
        for kernel in ("sdpa", "eager")
    )
    assert (sdpa - eager).abs().max() <= 1e-5


def test_eight_threads_equal_one(model, processor):
    inputs = mixed_inputs()[:8]
    alone = [embed(model, processor, [item]) for item in inputs]
    together: dict[int, torch.Tensor] = {}

    def work(index):
        together[index] = embed(model, processor, [inputs[index]])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, vector in enumerate(alone):
        assert (together[index] - vector).abs().max() <= 1e-6


def test_an_image_batch_before_a_text_batch_changes_nothing(model, processor):
    before = embed(model, processor, ["a red bus"])
    embed(model, processor, [noise_image(1), {"video": noise_video(2)}])
    after = embed(model, processor, ["a red bus"])
    assert torch.equal(before, after)


def test_the_number_of_latent_steps_matters(model, processor):
    vectors = [embed(model, processor, ["a red bus"], num_latent_steps=k) for k in range(5)]
    for first in range(5):
        for second in range(first):
            assert (vectors[first] - vectors[second]).abs().max() > 1e-3


def test_outputs_have_the_documented_shapes(model, processor):
    with torch.no_grad():
        output = model(**processor.process_queries(["a red bus", noise_image(0)]), num_latent_steps=2)
    assert output.embeddings.shape == output.anchor_embeddings.shape == (2, 32)
    assert output.latent_states.shape == (2, 2, 32)
    assert output.router_probs.shape == (2, 2, 4)
    assert output.suffix_states.shape == (2, 1 + 2, 32)
    assert torch.allclose(output.embeddings.norm(dim=-1), torch.ones(2))
    assert torch.allclose(output.router_probs.sum(-1), torch.ones(2, 2))
    assert torch.equal(output.latent_states[:, -1], output.suffix_states[:, 0])


def test_a_row_s_own_suffix_is_read_up_to_its_last_gen(model, processor):
    config = model.config
    end, gen = config.latent_end_token_id, config.embedding_token_id
    features = processor.process_documents(["a red bus", "two dogs"])
    suffixes = torch.tensor([[end, gen, 71, gen, 72], [end, gen, 75, 76, 77]])
    with torch.no_grad():
        together = model(**features, suffix_input_ids=suffixes).embeddings
        for row, length in enumerate((4, 2)):
            alone = model(
                **processor.process_documents([["a red bus", "two dogs"][row]]),
                suffix_input_ids=suffixes[row : row + 1, :length],
            ).embeddings
            assert (alone[0] - together[row]).abs().max() <= 1e-5


def test_the_anchor_is_the_last_one_of_the_prefix(model, processor):
    """The prompt of the released checkpoint names the embedding token in its directive; anchors may repeat as well."""
    features = processor.process_documents(["a red bus"])
    twice = features["input_ids"].clone()
    twice[0, 5] = model.config.anchor_token_id
    with torch.no_grad():
        gen, anchor = embed_row(model, {**features, "input_ids": twice}, num_latent_steps=3)
        output = model(**{**features, "input_ids": twice})
    assert (output.embeddings[0] - gen).abs().max() <= 1e-5
    assert (output.anchor_embeddings[0] - anchor).abs().max() <= 1e-5


def test_every_parameter_gets_a_gradient_the_router_included(model, processor):
    model.train()
    output = model(**processor.process_queries(mixed_inputs()[:6]))
    logits = model.lm_head(output.suffix_states)
    (output.embeddings[:, 0].sum() + logits.sum() * 1e-3).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert silent == []


def test_generation_is_greedy_decoding_of_the_plain_language_model(model, processor):
    """The logits of `generate` (left padding, cache, one token at a time) are those of full passes at our positions."""
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": noise_image(3)}, {"type": "text", "text": "a bus"}]}],
        [{"role": "user", "content": [{"type": "video", "video": noise_video(3)}]}],
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "latent": False}
    features = processor.apply_chat_template(conversations, **options)
    with torch.no_grad():
        generated = model.generate(
            **features, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    for row, conversation in enumerate(conversations):
        single = processor.apply_chat_template([conversation], **options)
        for place, logits in enumerate(generated.logits):
            new = generated.sequences[row : row + 1, features["input_ids"].shape[1] :][:, :place]
            ids = torch.cat([single["input_ids"], new], dim=1)
            media = {name: value for name, value in single.items() if name not in ("input_ids", "attention_mask")}
            with torch.no_grad():
                whole = model(input_ids=ids, **media, causal_lm=True).logits[0, -1]
            assert (logits[row] - whole).abs().max() <= 1e-4


def test_vectors_equal_the_committed_ones(tmp_path):
    """The same checkpoint gives the same vectors on every supported library version."""
    model, processor = save_random_plume(tmp_path, num_latent_steps=3)
    inputs = [
        "a red bus at a stop",
        {"image": str(MEDIA / "bus.png")},
        {"video": [str(MEDIA / "boat.png")] * 3},
        {"image": str(MEDIA / "timetable_page.png"), "text": "the total of the second row"},
    ]
    with torch.no_grad():
        vectors = model(**processor.process_queries(inputs)).embeddings
    assert (vectors - torch.tensor(json.loads(VECTORS.read_text()))).abs().max() <= 1e-5
