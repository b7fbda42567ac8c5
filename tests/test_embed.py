"""plume.embed: vectors of long lists with unusable items in them, pages of PDFs, and runs that are killed."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from processes import start
from sentence_transformers import SentenceTransformer

import plume
from inputs import ROOT, noise_image, noise_video
from plume.embedding import _Encoder
from plume.resume import Embeddings

BAD = [
    {"image": "missing.png"},
    {"image": "truncated.png"},
    "",
    {"sound": "bell.wav"},
]


@pytest.fixture(scope="module")
def tiny():
    return plume.load("tiny")


@pytest.fixture
def pair(checkpoint):
    return plume.load(checkpoint)


def thousand(folder) -> tuple[list, set[int]]:
    """1,000 texts, small pictures, clips and mixtures, of which the 20 at the returned places are unusable."""
    whole = folder / "whole.png"
    noise_image(0, 60, 60).save(whole)
    (folder / "truncated.png").write_bytes(whole.read_bytes()[:100])
    kinds = [
        lambda n: f"a red bus at stop {n} " + "and more " * (n % 7),
        lambda n: {"text": f"the total of row {n}"},
        lambda n: {"image": noise_image(n, 28 + 28 * (n % 3), 56)},
        lambda n: f"two dogs {n}",
        lambda n: {"image": noise_image(n, 56, 28), "text": f"picture {n}"},
        lambda n: {"video": noise_video(n, 2)} if n % 50 == 5 else f"a boat {n}",
    ]
    items = [kinds[n % len(kinds)](n) for n in range(1000)]
    bad = set(range(7, 1000, 50))
    for place in bad:
        item = BAD[place % len(BAD)]
        items[place] = {"image": str(folder / item["image"])} if isinstance(item, dict) and "image" in item else item
    return items, bad


@pytest.mark.slow
def test_a_thousand_items_with_twenty_bad_ones_give_980_vectors_equal_to_encode_s(tmp_path, checkpoint, pair):
    items, bad = thousand(tmp_path)
    result = plume.embed(items, pair, on_error="skip", progress=False)
    good = [item for place, item in enumerate(items) if place not in bad]
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(good)
    assert result.vectors.shape == (980, 32)
    assert np.abs(result.vectors - expected).max() <= 1e-5
    assert set(range(1000)) - set(result.indices.tolist()) == bad
    assert [failure.index for failure in result.failures] == sorted(bad)
    assert all(len(failure.reason) > 20 for failure in result.failures)


def test_an_unusable_item_is_named_with_its_place(pair):
    with pytest.raises(ValueError, match=r"Item 1 \(\{'image': 'missing.png'\}\) cannot be embedded\. The image"):
        plume.embed(["a red bus", {"image": "missing.png"}], pair, progress=False)


def test_unusable_items_can_keep_their_rows(pair):
    result = plume.embed(["a red bus", "", "two dogs"], pair, on_error="nan", progress=False)
    assert np.isnan(result.vectors).all(axis=1).tolist() == [False, True, False]
    assert result.indices.tolist() == [0, 1, 2]
    assert [failure.index for failure in result.failures] == [1]


def test_a_row_that_fails_in_the_model_fails_alone(pair):
    model, processor = pair
    row = processor.tokenizer.convert_tokens_to_ids("Q")
    with torch.no_grad():
        model.get_input_embeddings().weight[row] = float("nan")
    result = plume.embed(["a red bus", "Q", "two dogs"], (model, processor), on_error="skip", progress=False)
    assert result.indices.tolist() == [0, 2]
    assert "not finite" in result.failures[0].reason


def test_an_empty_list_has_no_rows(pair):
    assert plume.embed([], pair, progress=False).vectors.shape == (0, 32)


def test_queries_carry_their_instruction(pair):
    model, processor = pair
    with torch.no_grad():
        expected = model(**processor.process_queries(["a red bus"])).embeddings.numpy()
    assert np.abs(plume.embed(["a red bus"], pair, task="query", progress=False).vectors - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "passage"}, "task='passage'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"max_pixel": 1}, "max_pixel"),
    ],
)
def test_unknown_options_are_refused(pair, options, message):
    with pytest.raises(ValueError, match=message):
        plume.embed(["a red bus"], pair, progress=False, **options)


def test_a_model_in_training_mode_is_refused(pair):
    with pytest.raises(ValueError, match="model.eval"):
        plume.embed(["a red bus"], (pair[0].train(), pair[1]))


def test_options_of_from_pretrained_reach_the_model(checkpoint):
    model, _ = plume.load(checkpoint, attn_implementation="eager", local_files_only=True)
    assert model.config._attn_implementation == "eager"


def test_a_plain_backbone_is_refused(backbone):
    with pytest.raises(ValueError, match="'qwen2_vl' model without an adapter"):
        plume.load(backbone)


def test_batches_hold_rows_of_similar_length_within_the_budget(pair, monkeypatch):
    shapes = []
    real = _Encoder._collate

    def recorded(self, features):
        batch = real(self, features)
        shapes.append(tuple(batch["input_ids"].shape))
        return batch

    monkeypatch.setattr(_Encoder, "_collate", recorded)
    items = ["word " * (1 + 40 * (n % 2)) for n in range(20)]
    plume.embed(items, pair, batch_tokens=600, progress=False)
    assert all(rows * width <= 600 for rows, width in shapes)
    widths = {width for _, width in shapes}
    assert max(widths) > 2 * min(widths)  # short rows are not padded to long ones


def test_the_shipped_model_answers_to_its_name(tiny):
    model, processor = tiny
    assert model.config.num_latent_steps == 8
    assert not model.training
    assert plume.embed(["open red"], tiny, progress=False).vectors.shape == (1, 128)


# Files


ITEMS = [f"a red bus at stop {n}" for n in range(40)]


def test_a_finished_file_is_read_instead_of_embedding_again(pair, tmp_path, monkeypatch):
    output = tmp_path / "vectors.npz"
    first = plume.embed([*ITEMS[:3], ""], pair, on_error="skip", output=output, progress=False)
    monkeypatch.setattr(_Encoder, "embed", None)
    again = plume.embed([*ITEMS[:3], ""], pair, on_error="skip", output=output, progress=False)
    assert (again.vectors == first.vectors).all()
    assert again.failures == first.failures
    assert (Embeddings.read(output).vectors == first.vectors).all()
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npz"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(pair, checkpoint, tmp_path, monkeypatch):
    items = [f"a red bus at stop {n}" for n in range(400)]
    arguments = f"{items!r}, plume.load({str(checkpoint)!r}), output={str(tmp_path / 'vectors.npz')!r}"
    process = start(exec, f"import plume; plume.embed({arguments}, batch_tokens=200, progress=False)")
    while not list(tmp_path.glob("vectors.npz.parts/*.npz")) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "vectors.npz").exists()
    stored = sum(len(Embeddings.read(path).vectors) for path in (tmp_path / "vectors.npz.parts").glob("*.npz"))
    seen = []
    real = _Encoder._prepare
    monkeypatch.setattr(_Encoder, "_prepare", lambda self, unit: seen.append(unit.index) or real(self, unit))
    result = plume.embed(items, pair, output=tmp_path / "vectors.npz", batch_tokens=200, progress=False)
    assert seen == list(range(stored, 400))
    expected = plume.embed(items, pair, progress=False)
    assert result.indices.tolist() == list(range(400))
    assert np.abs(result.vectors - expected.vectors).max() <= 1e-5


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (["other", *ITEMS[1:]], {}, "other items"),
        (ITEMS[:-1], {}, "more items"),
        ([*ITEMS, "one more"], {}, "first 40 items only"),
        (ITEMS, {"num_latent_steps": 0}, "another model or of other settings"),
        (ITEMS, {"task": "query"}, "another model or of other settings"),
    ],
    ids=["other item", "fewer", "more", "other K", "other task"],
)
def test_rows_of_other_items_or_another_condition_are_refused(pair, tmp_path, items, options, message):
    plume.embed(ITEMS, pair, output=tmp_path / "vectors.npz", progress=False)
    with pytest.raises(ValueError, match=message):
        plume.embed(items, pair, output=tmp_path / "vectors.npz", progress=False, **options)


def test_rows_of_another_model_are_refused(pair, tmp_path):
    plume.embed(ITEMS[:2], pair, output=tmp_path / "vectors.npz", progress=False)
    with torch.no_grad():
        pair[0].latent_transition.experts.up_bias.add_(1)
    with pytest.raises(ValueError, match="another model"):
        plume.embed(ITEMS[:2], pair, output=tmp_path / "vectors.npz", progress=False)


# Pages of PDFs


@pytest.fixture
def pdf(tmp_path):
    pytest.importorskip("pypdfium2", reason="pages of PDFs need the extra `pdf`")
    pages = [Image.new("RGB", (200, 100), color) for color in ("red", "green", "blue")]
    pages[0].save(tmp_path / "three.pdf", save_all=True, append_images=pages[1:])
    return tmp_path / "three.pdf"


def test_pages_of_a_pdf_come_with_their_numbers(pdf):
    pages = list(plume.pdf_pages(pdf, max_pixels=20_000))
    assert [number for number, _ in pages] == [1, 2, 3]
    assert all(abs(page.width * page.height - 20_000) < 1000 for _, page in pages)
    assert pages[1][1].getpixel((50, 50))[1] > 100


def test_a_pdf_gives_one_vector_per_page(pdf, pair):
    result = plume.embed(["a red bus", {"pdf": pdf}, {"pdf": str(pdf), "text": "the colour"}], pair, progress=False)
    assert result.indices.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert result.pages.tolist() == [0, 1, 2, 3, 1, 2, 3]
    page = {"image": dict(plume.pdf_pages(pdf))[2], "text": "the colour"}
    assert np.abs(result.vectors[5] - plume.embed([page], pair, progress=False).vectors[0]).max() <= 1e-5


@pytest.mark.parametrize("name", ["missing.pdf", "damaged.pdf"])
def test_a_pdf_that_cannot_be_opened_is_one_failure(pdf, pair, name):
    (pdf.parent / "damaged.pdf").write_bytes(b"%PDF-1.4 nothing")
    result = plume.embed([{"pdf": pdf.parent / name}, "a red bus"], pair, on_error="skip", progress=False)
    assert result.indices.tolist() == [1]
    assert name in result.failures[0].reason


def test_the_page_s_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.startswith(
        "(2, 128) [0 1]\n[Failure(index=2, page=0, reason=\"The image 'missing.jpg'"
    )
