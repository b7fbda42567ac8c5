"""What recent inputs have in common is read once, exactly, and forgotten as soon as the model changes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from inputs import every_backbone as model_type  # noqa: F401 (the fixture of this module)
from inputs import noise_image, noise_video
from plume.apps.shared.encoder import Encoder
from plume.hub.random_checkpoint import fill_weights
from plume.speed import pictures, prefixes

QUERIES = ["a red bus", "two dogs on a sofa and more words", "the total", "at the stop of the red bus"]


def vectors(model, processor, inputs, prompt=None, **kwargs) -> torch.Tensor:
    with torch.inference_mode():
        return model(**processor.process_queries(inputs, prompt=prompt), **kwargs).embeddings


@pytest.fixture
def plain(model):
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared).speed_up(False)


@pytest.fixture
def reusing(model):
    return model.speed_up(pack=False)


@pytest.fixture
def saved(monkeypatch):
    """Columns that each pass did not have to read."""
    find, columns = prefixes._find, []

    def spy(*args):
        found = find(*args)
        columns.append(found[1])
        return found

    monkeypatch.setattr(prefixes, "_find", spy)
    return columns


@pytest.fixture
def towers(monkeypatch, model):
    """Pictures that each pass of the vision tower reads."""
    backbone, counts = type(model.model), []
    own = backbone.get_image_features

    def spy(self, pixels, grids, **kwargs):
        counts.append(len(grids))
        return own(self, pixels, grids, **kwargs)

    monkeypatch.setattr(backbone, "get_image_features", spy)
    return counts


def entries(model) -> list[prefixes.Entry]:
    return model.model.language_model.forward.kept


# Common beginnings


@pytest.mark.parametrize("num_latent_steps", [0, 3, 8])
@pytest.mark.parametrize("batch", [QUERIES[1:2], QUERIES[1:], ["a"] * 3, QUERIES[::-1]], ids=len)
def test_vectors_are_those_of_whole_passes(reusing, plain, processor, saved, batch, num_latent_steps):
    options = {"num_latent_steps": num_latent_steps, "readout_steps": [0, num_latent_steps]}
    options["readout_steps"] = sorted(set(options["readout_steps"]))
    for inputs in (QUERIES[:1], batch):
        expected = vectors(plain, processor, inputs, **options)
        assert (vectors(reusing, processor, inputs, **options) - expected).abs().max() <= 1e-5
    assert saved[0] == 0
    assert saved[1] >= 10


def test_rows_padded_on_the_right_reuse_as_well(reusing, plain, processor, saved):
    features = dict(processor.process_queries(QUERIES))
    starts = features["attention_mask"].argmax(dim=-1).tolist()
    for name in ("input_ids", "attention_mask"):
        features[name] = torch.stack([row.roll(-start) for row, start in zip(features[name], starts, strict=True)])
    vectors(reusing, processor, ["the"])
    with torch.inference_mode():
        expected, found = (model(**features).embeddings for model in (plain, reusing))
    assert (found - expected).abs().max() <= 1e-5
    assert saved[1] >= 10


def test_an_instruction_is_found_again_after_others(reusing, processor, saved):
    instructions = ["Find the picture.", "Which page answers this?", "Name the same product."]
    for prompt in instructions:
        vectors(reusing, processor, ["a red bus"], prompt)
    system_line = saved[-1]
    saved.clear()
    for prompt in instructions:
        vectors(reusing, processor, ["two dogs"], prompt)
    assert all(columns > system_line for columns in saved)


def test_other_instructions_share_no_more_than_they_have_in_common(reusing, plain, processor, saved):
    for prompt in ("Find the picture.", "Find the page."):
        expected = vectors(plain, processor, QUERIES, prompt)
        assert (vectors(reusing, processor, QUERIES, prompt) - expected).abs().max() <= 1e-5
    assert saved[-1] > 0


def test_every_state_of_the_prefix_is_there(reusing, plain, processor):
    features = processor.process_queries(QUERIES)
    vectors(reusing, processor, ["the"])
    with torch.inference_mode():
        arguments = (features["input_ids"], features["attention_mask"], plain.media_of({}), 0)
        expected, found = (model.read_prefix(*arguments).hidden for model in (plain, reusing))
    read = features["attention_mask"].bool()
    torch.testing.assert_close(found[read], expected[read], atol=1e-5, rtol=1e-4)
    assert found.isfinite().all()


@pytest.mark.parametrize("media", [lambda: noise_image(1), lambda: noise_video(1)], ids=["picture", "clip"])
def test_media_in_front_of_other_words(reusing, plain, processor, saved, model_type, media):  # noqa: F811
    """Qwen3-VL puts features into deeper layers too: there such rows are read whole."""
    name = "video" if isinstance(media(), list) else "image"
    for text in ("a red bus", "two dogs"):
        inputs = [{name: media(), "text": text}]
        expected = vectors(plain, processor, inputs)
        assert (vectors(reusing, processor, inputs) - expected).abs().max() <= 1e-5
    assert len(saved) == (0 if model_type == "qwen3_vl" else 2)
    assert not saved or saved[1] > 10


def test_a_mixture_of_texts_and_media(reusing, plain, processor):
    inputs = ["a red bus", noise_image(2), {"image": noise_image(2), "text": "two dogs"}, "the total"]
    for _ in range(2):
        expected = vectors(plain, processor, inputs)
        assert (vectors(reusing, processor, inputs) - expected).abs().max() <= 1e-5


def test_what_is_kept_is_bounded(reusing, processor, monkeypatch):
    monkeypatch.setattr(prefixes, "_MOST_TOKENS", 24)
    monkeypatch.setattr(prefixes, "_MOST_ENTRIES", 3)
    for index in range(5):
        vectors(reusing, processor, ["the red bus"], f"{index} is the number.")
    kept = entries(reusing)
    assert len(kept) == 3
    assert all(len(entry.vectors) <= 24 for entry in kept)
    views = [t for entry in kept for both in entry.layers.values() for t in both] + [e.vectors for e in kept]
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in views)


def refill(model):
    fill_weights(model, seed=5)


def write_through_data(model):
    for weight in model.model.language_model.parameters():
        weight.data += 0.01


def write_in_place(model):
    with torch.no_grad():
        model.model.language_model.layers[0].self_attn.k_proj.weight.add_(0.1)


def load_state(model):
    model.load_state_dict({name: 1.1 * tensor for name, tensor in model.state_dict().items()})


def patch(model):
    mlp = model.model.language_model.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: 1.5 * own(x)


def hook(model):
    model.model.language_model.layers[0].register_forward_hook(
        lambda module, args, output: 1.5 * output if isinstance(output, torch.Tensor) else (1.5 * output[0],)
    )


def add_adapter(model):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["k_proj", "v_proj"])).eval()
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)


CHANGES = [refill, write_through_data, write_in_place, load_state, patch, hook, add_adapter]


@pytest.mark.parametrize("change", CHANGES, ids=lambda function: function.__name__)
def test_everything_is_dropped_when_the_model_changes(reusing, processor, change):
    before = vectors(reusing, processor, QUERIES)
    change(reusing)
    found = vectors(reusing, processor, QUERIES)
    expected = vectors(reusing.speed_up(False), processor, QUERIES)
    assert (expected - before).abs().max() > 1e-3
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("change", [patch, hook, add_adapter], ids=lambda function: function.__name__)
def test_a_decoder_that_may_change_unseen_is_said_to_read_everything(reusing, processor, saved, monkeypatch, change):
    messages = []
    monkeypatch.setattr(prefixes.logger, "warning_once", messages.append)
    change(reusing)
    vectors(reusing, processor, QUERIES)
    assert saved == []
    assert "merge_and_unload" in messages[0]


def test_no_entry_is_used_or_made_with_gradient_or_in_training(reusing, processor, saved):
    features = processor.process_queries(QUERIES)
    reusing(**features).embeddings[:, 0].sum().backward()
    reusing.train()
    vectors(reusing, processor, QUERIES)
    assert saved == entries(reusing) == []


def test_generating_is_left_alone(reusing, plain, processor):
    inputs = dict(processor.process_queries(["a red bus"]))
    vectors(reusing, processor, ["a red bus"])
    found, expected = (model.generate(**inputs, max_new_tokens=4, do_sample=False) for model in (reusing, plain))
    assert torch.equal(found, expected)


def test_one_switch_turns_it_off(reusing, processor):
    vectors(reusing, processor, QUERIES)
    reusing.speed_up(reuse=False)
    assert "forward" not in vars(reusing.model.language_model)
    assert "get_image_features" not in vars(reusing.model)


def test_copies_and_pickles_begin_anew(reusing, processor):
    expected = vectors(reusing, processor, QUERIES)
    for other in (copy.deepcopy(reusing), pickle.loads(pickle.dumps(reusing))):
        assert entries(other) == []
        assert other.model.language_model.forward.owner is other.model.language_model
        assert (vectors(other, processor, QUERIES) - expected).abs().max() <= 1e-5


def test_threads_get_the_vectors_of_their_own_inputs(reusing, plain, processor):
    batches = [[query, other] for query in QUERIES for other in QUERIES] * 2
    expected = [vectors(plain, processor, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: vectors(reusing, processor, batch), batches))
    assert all((one - other).abs().max() <= 1e-5 for one, other in zip(found, expected, strict=True))


def test_sentence_transformers_reuses_the_instruction(checkpoint, saved):
    encoder = SentenceTransformer(str(checkpoint))
    expected = [encoder.encode_query(query) for query in QUERIES]
    encoder[0].model.speed_up(pack=False)
    for query, vector in zip(QUERIES, expected, strict=True):
        assert abs(encoder.encode_query(query) - vector).max() <= 1e-5
    assert saved[0] == 0
    assert min(saved[1:]) >= 10


@pytest.mark.parametrize("reuse", [True, False])
def test_the_encoder_of_serving_and_search_reuses_unless_told_not_to(checkpoint, saved, reuse):
    encoder = Encoder(str(checkpoint), "cpu", reuse=reuse)
    for query in QUERIES:
        encoder.encode([query], "query")
    assert [columns >= 10 for columns in saved] == ([False, True, True, True] if reuse else [])


def test_a_model_with_code_of_its_own_says_that_it_reads_everything(model, monkeypatch):
    messages = []
    monkeypatch.setattr(prefixes.logger, "warning", messages.append)
    monkeypatch.setattr(prefixes, "PlumeModel", type(None))
    model.speed_up(pack=False)
    assert "Import plume" in messages[0]
    assert "forward" not in vars(model.model.language_model)


# Pictures


def test_a_picture_goes_through_the_tower_once(reusing, plain, processor, towers):
    batches = [
        [noise_image(1), noise_image(2), {"image": noise_image(1), "text": "a red bus"}],
        [{"image": [noise_image(2), noise_image(3)]}, noise_image(1)],
        [noise_image(3)],
    ]
    expected = [vectors(plain, processor, batch) for batch in batches]
    assert towers == [3, 3, 1]
    towers.clear()
    for batch, vector in zip(batches, expected, strict=True):
        assert (vectors(reusing, processor, batch) - vector).abs().max() <= 1e-5
    assert towers == [2, 1]


def test_a_clip_goes_through_the_tower_once(reusing, plain, processor, towers):
    batch = [{"video": noise_video(1)}, {"video": noise_video(1), "text": "a red bus"}, noise_image(1)]
    expected = vectors(plain, processor, batch)
    towers.clear()
    for _ in range(2):
        assert (vectors(reusing, processor, batch) - expected).abs().max() <= 1e-5
    assert towers == [1, 1]  # pictures, then clips; none in the second batch


def test_another_tower_reads_every_picture_again(reusing, processor, towers):
    vectors(reusing, processor, [noise_image(1)])
    with torch.no_grad():
        reusing.model.visual.patch_embed.proj.weight.mul_(1.5)
    found = vectors(reusing, processor, [noise_image(1)])
    assert towers == [1, 1]
    expected = vectors(reusing.speed_up(False), processor, [noise_image(1)])
    assert (found - expected).abs().max() <= 1e-5


def test_the_oldest_pictures_give_way(reusing, processor, towers, monkeypatch):
    tokens = int((processor.process_documents([noise_image(1)])["image_grid_thw"].prod()) // 4)
    monkeypatch.setattr(pictures, "_MOST_TOKENS", 2 * tokens)
    for seed in (1, 2, 1, 3, 1, 2):
        vectors(reusing, processor, [noise_image(seed)])
    assert len(towers) == 4  # 1, 2, 3, and 2 again
    assert len(reusing.model.get_image_features.kept) == 2


def test_a_hooked_tower_reads_every_picture(reusing, processor, towers):
    reusing.model.visual.blocks[0].register_forward_hook(lambda *args: None)
    for _ in range(2):
        vectors(reusing, processor, [noise_image(1)])
    assert towers == [1, 1]


def test_a_loaded_model_in_bfloat16_reuses(checkpoint, processor, saved):
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    expected = vectors(model, processor, QUERIES)
    model.speed_up(pack=False)
    vectors(model, processor, ["the"])
    assert (1 - (vectors(model, processor, QUERIES) * expected).sum(-1)).max() <= 1e-3
    assert saved[1] >= 10
