"""Pictures and words of real packages: builds repeat, splits cannot leak, and only what may be passed on is shipped."""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

pytest.importorskip("mteb")

import plume
from inputs import ROOT
from plume.evaluation.table import read_table, select
from plume.evaluation.tasks import make_task
from plume.playground.pictures import thinking, warmup
from plume.playground.pictures.augment import augment
from plume.playground.pictures.concepts import LANGUAGES, PARTIAL_LANGUAGES, family_of, key_of, read_concepts, slug
from plume.playground.pictures.corpora import aliases, genders, tones, write_pairs, write_tasks
from plume.playground.pictures.develop import dev_scores
from plume.playground.pictures.drawing import EDGE, STYLES, on_white
from plume.playground.pictures.evaluate import Remembering, WordMatch
from plume.playground.pictures.sources import PACKAGES, REDISTRIBUTABLE, Archive, Package, fetch, manifest
from plume.playground.pictures.splits import DEV_STYLE, TEST_STYLE, has_unseen_words, split_of, trained_languages
from plume.playground.pictures.student import build_tokenizer, save_student
from plume.playground.pictures.words import WISHES, Word, training_words
from plume.playground.pictures.world import read_world, write_concepts

_FACES, _SIGNS = 60, 8
_PEOPLE = {"1f468-200d-1f692": "man firefighter", "1f469-200d-1f692": "woman firefighter"}


def pack(path, files):
    """An archive as ``npm pack`` writes it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Archive(path)


def names_of(language):
    """Key -> name and keywords, as a package of annotations has them."""
    faces = {f"{0x1F600 + n:x}": f"face {n}" for n in range(_FACES)}
    flags = {"1f1eb-1f1f7": "flag: France", "1f1f3-1f1f4": "flag: Norway", "1f1e7-1f1fb": "flag: Bouvet Island"}
    names = {**faces, **flags, **_PEOPLE}
    return {
        key: (name if language == "en" else f"{name} {language}", ["thing", f"word of {name}"])
        for key, name in names.items()
    }


def annotations(folder, language):
    emoji = lambda key: "".join(chr(int(part, 16)) for part in key.split("-"))  # noqa: E731
    entries = {
        emoji(key): {"tts": [name], "default": [*words, name]} for key, (name, words) in names_of(language).items()
    }
    return json.dumps({folder: {"annotations": entries if folder == "annotations" else {}}}).encode()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    languages = (*LANGUAGES, *PARTIAL_LANGUAGES)
    entries = [
        {
            "unified": key.upper(),
            "category": "Flags" if name.startswith("flag") else "Smileys & Emotion",
            "subcategory": "some-thing",
            "short_names": [f"other_{place}"],
            "skin_variations": {"1F3FF": {"unified": f"{key}-1f3ff"}} if key in _PEOPLE else {},
        }
        for place, (key, (name, _)) in enumerate(names_of("en").items())
    ]
    found = {"noto": pack(folder / "noto.tgz", {"emoji.json": json.dumps(entries).encode()})}
    for source, name in (("names", "annotations"), ("derived", "annotationsDerived")):
        files = {f"{name}/{language}/annotations.json": annotations(name, language) for language in languages}
        found[source] = pack(folder / f"{source}.tgz", files)
    return found


@pytest.fixture(scope="module")
def concepts(archives):
    return read_concepts(archives, (*LANGUAGES, *PARTIAL_LANGUAGES))


@pytest.fixture(scope="module")
def world(concepts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for style in ("noto", "openmoji", DEV_STYLE, TEST_STYLE):
        (folder / "pictures" / style).mkdir(parents=True)
        for concept in concepts:
            for key in (concept.key, *concept.toned.values()):
                picture = Image.new("RGB", (EDGE, EDGE), "white")
                place = int(hashlib.sha256(f"{style}{key}".encode()).hexdigest(), 16)
                ImageDraw.Draw(picture).rectangle((5, 5, 10 + place % 40, 50), fill=f"#{place % 0xFFFFFF:06x}")
                picture.save(folder / "pictures" / style / f"{key}.png")
    write_concepts(folder, concepts)
    return read_world(folder)


def test_a_world_is_read_as_it_was_written(world, concepts):
    assert world.concepts == concepts


@pytest.mark.parametrize(
    ("written", "key"),
    [("0033-FE0F-20E3", "33-20e3"), ("1F468-200D-1F692", "1f468-200d-1f692"), ("1F1EB_1F1F7", "1f1eb-1f1f7")],
)
def test_code_points_in_any_spelling_have_one_key(written, key):
    assert key_of(written) == key


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("1f468-200d-1f692", "1f469-200d-1f692"),  # man and woman firefighter
        ("1f3c3-200d-2640", "1f3c3-200d-2642"),  # woman and man running
        ("1f3c3-200d-2640", "1f3c3"),
        ("1f1f3-1f1f4", "1f1e7-1f1fb"),  # Norway's flag flies on Bouvet Island
    ],
)
def test_what_looks_alike_is_one_family(key, other):
    assert family_of(key) == family_of(other)


def test_different_things_are_different_families():
    keys = ("1f600", "1f601", "1f1eb-1f1f7", "1f1f3-1f1f4", "2640", "1f3c3")
    assert len({family_of(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(("name", "spelled"), [("Côte d’Ivoire", "cote-divoire"), ("A & B", "a-b"), ("日本", "")])
def test_names_are_spelled_as_the_sets_spell_them(name, spelled):
    assert slug(name) == spelled


def test_no_family_is_in_two_splits(concepts):
    by_family = {}
    for concept in concepts:
        by_family.setdefault(concept.family, set()).add((split_of(concept), has_unseen_words(concept)))
    assert all(len(found) == 1 for found in by_family.values())


def test_training_words_name_no_untrained_concept(concepts):
    trained = {concept.key for concept in concepts if split_of(concept) == "train"}
    assert {key for word in training_words(concepts) for key in word.keys} == trained
    assert len(trained) < len(concepts)


def test_words_left_out_of_a_language_are_left_out_of_it_alone(concepts):
    left_out = {c.key for c in concepts if has_unseen_words(c)}
    assert left_out
    for word in training_words(concepts):
        assert word.language in LANGUAGES or not left_out & set(word.keys)
    assert all(
        set(trained_languages(c)) == set(LANGUAGES) for c in concepts if c.key in left_out and split_of(c) == "train"
    )


def test_training_shows_no_untrained_style_or_concept(world):
    rows = world.trained_pictures()
    assert {row.style for row in rows} == {"noto", "openmoji"}
    assert {split_of(world.by_key[row.key]) for row in rows} == {"train"}


def test_pairs_name_no_untrained_concept(world, tmp_path):
    held_out = {c.names[lang] for c in world.concepts if split_of(c) != "train" for lang in c.names}
    lines = write_pairs(world, tmp_path, 200, progress=False).read_text(encoding="utf-8").splitlines()
    said = {
        turn["value"] for line in lines for side in ("qry", "pos") for turn in json.loads(line)[side]["conversations"]
    }
    assert not said & held_out
    assert not any(f"<answer>{name}</answer>" in text for text in said for name in held_out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "write", [write_tasks, lambda world, folder, progress: write_pairs(world, folder, 40, progress=progress)]
)
def test_writing_twice_gives_the_same_bytes(world, tmp_path, write):
    def content(name):
        write(world, tmp_path / name, progress=False)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    assert content("once") == content("again")


def test_tasks_ask_for_every_concept_of_the_test_style(world, tmp_path):
    rows = {row.id: row for row in read_table(write_tasks(world, tmp_path, progress=False)).rows}
    assert {f"words-{language}" for language in LANGUAGES} <= rows.keys()
    assert rows["words-en"].num_queries == len(world.concepts)
    assert rows["words-uk-seen"].num_queries + rows["words-uk-unseen"].num_queries == sum(
        split_of(concept) == "train" for concept in world.concepts
    )


def test_the_block_of_the_page_runs_and_finds_its_pictures(monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", Path("docs/pictures.md").read_text("utf-8"), re.DOTALL)
    names = {}
    exec(block, names)
    vectors = plume.embed(names["pictures"], names["model"], progress=False).vectors
    assert (names["words"] @ vectors.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_a_word_is_asked_for_in_another_language(world, tmp_path):
    table = read_table(write_tasks(world, tmp_path, progress=False))
    (row,) = select(table, ["words-ar-to-fr"])
    task = make_task(row, tmp_path)
    task.load_data()
    data = task.dataset["default"]["test"]
    words = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    asked = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    found = {asked[name]: words[next(iter(keys))] for name, keys in data["relevant_docs"].items()}
    assert found == {c.names["ar"]: c.names["fr"] for c in world.concepts}
    assert not {"image", "video"} & {*data["queries"].column_names, *data["corpus"].column_names}


def test_composed_queries_join_one_thing_in_two_forms(world):
    toned = list(tones(world, TEST_STYLE, world.concepts))
    assert {(asked.query, Path(asked.answer_picture).stem) for asked in toned} == {
        ("the same with dark skin tone", f"{key}-1f3ff") for key in _PEOPLE
    }
    man, woman = (f"{TEST_STYLE}/{key}.png" for key in _PEOPLE)
    asked = {(one.query, one.query_picture, one.answer_picture) for one in genders(world, TEST_STYLE)}
    assert asked == {("the same as a woman", man, woman), ("the same as a man", woman, man)}


def test_aliases_are_no_trained_text(concepts):
    trained = {slug(word.text) for word in training_words(concepts) if word.language == "en"}
    found = aliases(concepts)
    assert found["aliases"]
    assert not {slug(text) for text, _ in found["aliases"]} & trained
    assert set(found["aliases-without-the-name"]) <= set(found["aliases"])


def test_word_match_finds_a_name_among_the_pictures(world):
    search = Remembering(WordMatch(world))
    drawn = world.drawn(TEST_STYLE)[:20]
    pictures = search.encode([{"text": "", "image": world.picture(row.path)} for row in drawn], "document")
    words = search.encode([{"text": world.by_key[row.key].names["en"]} for row in drawn], "query")
    assert (words @ pictures.T).argmax(dim=1).tolist() == list(range(len(drawn)))
    assert (search.encode([{"text": "of nothing shown"}], "query") @ pictures.T).max() < 1


def test_pictures_are_changed_but_stay_pictures():
    pictures = torch.rand(8, 3, EDGE, EDGE)
    changed = augment(pictures, torch.Generator().manual_seed(0))
    assert changed.shape == pictures.shape
    assert 0 <= changed.min() < changed.max() <= 1
    assert torch.equal(changed, augment(pictures, torch.Generator().manual_seed(0)))
    assert not torch.allclose(changed, pictures, atol=0.05)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_skin_tones_stay_where_colors_are_kept(strength):
    pictures = torch.full((8, 3, EDGE, EDGE), 0.4)
    pictures[:, 0] = 0.8
    changed = augment(pictures, torch.Generator().manual_seed(0), recolor=False, strength=strength)
    assert (changed.flatten(2).median(dim=2).values - torch.tensor([0.8, 0.4, 0.4])).abs().max() < 1e-4


def test_more_is_changed_at_a_higher_strength():
    pictures = torch.rand(8, 3, EDGE, EDGE)
    weak, strong = (augment(pictures, torch.Generator().manual_seed(0), strength=strength) for strength in (0.0, 1.0))
    assert not torch.allclose(weak, strong, atol=0.05)
    assert 0 <= strong.min() < strong.max() <= 1


def test_transparency_is_white_and_the_picture_in_the_middle():
    drawn = on_white(Image.new("RGBA", (30, 10), (255, 0, 0, 255)))
    assert drawn.size == (EDGE, EDGE)
    assert drawn.getpixel((0, 0)) == (255, 255, 255)
    assert drawn.getpixel((EDGE // 2, EDGE // 2)) == (255, 0, 0)


@pytest.fixture(scope="module")
def student(world, tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student"), world.words)


def test_a_text_is_first_what_has_it_as_its_name():
    word = Word("dog", "en", ("dog", "face", "poodle"), ("dog",))
    assert word.shares() == {"dog": pytest.approx(0.85), "face": pytest.approx(0.075), "poodle": pytest.approx(0.075)}
    assert Word("dog", "en", ("dog",), ("dog",)).shares() == {"dog": 1.0}
    assert Word("pet", "en", ("dog", "poodle"), ()).shares() == {"dog": 0.5, "poodle": 0.5}


def test_every_word_of_an_english_name_is_one_piece(world):
    tokenizer = build_tokenizer(world.words)
    names = [word.text for word in world.words if word.language == "en" and word.is_name]
    names = [name for name in names if not any(map(str.isdigit, name))]
    assert names
    for name in [*names, *WISHES]:
        assert len(tokenizer(name)["input_ids"]) == len(name.replace(":", " :").replace("-", " - ").split())


@pytest.mark.parametrize("text", ["Firefighter", "firefighter", "FIREFIGHTER"])
def test_capital_letters_change_nothing(world, text):
    tokenizer = build_tokenizer(world.words)
    alone = tokenizer("firefighter")["input_ids"]
    assert tokenizer(text)["input_ids"] == alone
    assert tokenizer(f"user\n{text}")["input_ids"][-len(alone) :] == alone


def test_a_wish_joins_a_picture_with_the_number_of_its_tone(world, student):
    pictures = warmup.Pictures(world, plume.load(student)[1])
    shown = pictures.draw(len(pictures.plain), len(pictures.toned), torch.Generator().manual_seed(0))
    asked = [(int(label), int(wish)) for label, wish in zip(shown.labels, shown.wishes, strict=True) if wish >= 0]
    people = {world.number[key] for key in _PEOPLE if split_of(world.by_key[key]) == "train"}
    assert {label for label, _ in asked} == people
    for label, wish, wished in zip(
        *(part.tolist() for part in (shown.labels, shown.wishes, shown.wished)), strict=True
    ):
        if wish >= 0:
            key = world.concepts[label].key
            other = next(one for one in _PEOPLE if one != key)
            assert wished in (world.number[other], *pictures.toned)
            assert (wished == world.number[other]) == ("same as" in WISHES[wish])


def plan(second=2):
    phases = (warmup.Phase(False, 3, 8, 4, 2, 1e-3), warmup.Phase(True, second, 8, 4, 2, 1e-3, latent_steps=2))
    return warmup.Plan(phases, save_every=2)


@pytest.mark.slow
def test_a_killed_warm_up_goes_on_as_if_it_had_not_been(world, student, tmp_path, monkeypatch):
    whole = warmup.run(world, student, tmp_path / "whole", plan())
    taken = warmup.Warmup.train_step

    def killed(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return taken(self)

    with monkeypatch.context() as patch:
        patch.setattr(warmup.Warmup, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            warmup.run(world, student, tmp_path / "parts", plan())
    resumed = warmup.run(world, student, tmp_path / "parts", plan())
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_warm_up_of_another_plan_is_not_continued(world, student, tmp_path):
    warmup.run(world, student, tmp_path, plan())
    with pytest.raises(ValueError, match="of another run"):
        warmup.run(world, student, tmp_path, plan(second=4))


def test_the_dev_style_is_scored_by_language(world, student):
    model, processor = plume.load(student)
    scores = dev_scores(world, model, processor, ("en", "fi"), latent_steps=0)
    assert scores.keys() == {"en", "fi", "mean"}
    assert all(0 <= one["hit@1"] <= one["hit@10"] <= 100 for one in scores.values())
    assert scores["mean"]["hit@10"] == pytest.approx((scores["en"]["hit@10"] + scores["fi"]["hit@10"]) / 2)


def test_variants_of_thinking_run_at_three_rates_and_at_the_best_with_further_seeds(world, tmp_path, monkeypatch):
    runs = []

    def run(self, variant, rate, seed):
        runs.append(variant)
        if len(runs) == 5:
            raise KeyboardInterrupt
        dev = {"mean": {"hit@10": -abs(rate - thinking.RATES[1])}}
        return {"variant": variant, "rate": rate, "seed": seed, "dev": dev}

    monkeypatch.setattr(thinking.Lab, "run", run)
    torch.save({}, tmp_path / "parts.pt")
    command = [
        str(world.folder),
        str(tmp_path / "parts.pt"),
        str(tmp_path / "rows.json"),
        "--variants",
        "K = 8",
        "K = 0",
    ]
    with pytest.raises(KeyboardInterrupt):
        thinking.main(command)
    thinking.main(command)
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    done = {(row["variant"], row["rate"], row["seed"]) for row in rows}
    assert len(rows) == len(done) == 10
    assert {rate for _, rate, seed in done if seed} == {thinking.RATES[1]}
    assert (tmp_path / "rows.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_variant_of_thinking_starts_from_the_state_after_the_parts(world, student, tmp_path, monkeypatch):
    warmup.run(world, student, tmp_path, plan())
    parts = torch.load(tmp_path / warmup.PARTS, weights_only=False)
    started = []

    def train_step(self):
        started.append((self.phase.latent_steps, self.model.get_input_embeddings().weight[:, 1:].clone()))
        self.step += 1
        return {}

    monkeypatch.setattr(warmup.Warmup, "train_step", train_step)
    monkeypatch.setattr(thinking, "read_student", lambda world: plume.load(student))
    thinking.Lab(world, parts, 4).run("abrupt", 1e-3, 0)
    assert [latent_steps for latent_steps, _ in started] == [0, 0, 8, 8]
    assert parts["step"] == 3
    assert torch.equal(started[0][1], parts["model"]["model.language_model.embed_tokens.weight"][:, 1:])


def test_an_archive_with_another_content_is_refused(tmp_path):
    package = Package("some", "1.0.0", "0" * 64, "MIT", "", "")
    pack(tmp_path / package.file, {"a": b""})
    with pytest.raises(ValueError, match="fetch it again"):
        fetch(tmp_path, {"some": package})


def test_every_package_may_be_passed_on_and_is_pinned():
    for row in manifest():
        assert row["licence"] in REDISTRIBUTABLE
        assert row["attribution"]
        assert len(row["sha256"]) == 64
    assert set(STYLES) - {"openmoji-line"} <= PACKAGES.keys()


def test_every_picture_of_the_repository_is_listed_and_may_be_passed_on():
    folder = ROOT / "examples" / "pictures"
    content = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    assert {path.name for path in folder.iterdir()} == {*content["pictures"], "pictures.json"}
    assert content["source"] == asdict(PACKAGES[TEST_STYLE])
    assert content["source"]["licence"] in REDISTRIBUTABLE
    assert content["changes"]


def test_the_checkpoint_gives_its_vectors():
    golden = json.loads((ROOT / "tests" / "references" / "pictures.json").read_text(encoding="utf-8"))
    pictures = [{"image": str(ROOT / "examples" / "pictures" / name)} for name in golden["pictures"]]
    expected = [*golden["queries"].values(), *golden["pictures"].values()]
    assert len(expected) == 10
    found = plume.embed([*golden["queries"], *pictures], model="pictures", progress=False).vectors
    for vector, first in zip(found, expected, strict=True):
        assert vector[: len(first)] == pytest.approx(first, abs=1e-4)


def test_the_checkpoint_is_small_enough_for_the_repository():
    folder = ROOT / "checkpoints" / "plume-pictures"
    assert sum(path.stat().st_size for path in folder.iterdir() if not path.is_symlink()) <= 20e6


@pytest.mark.parametrize(
    "text",
    ["sleeping face", "Ελλάδα", "สวัสดี", "日本語", "עברית", "\u1780\u1798\u17d2\u1796\u17bb\u1787\u17b6", "\U0001f634"],
)
def test_every_script_is_written_and_read_back_in_lower_case(text):
    tokenizer = plume.load("pictures")[1].tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.lower()


@pytest.mark.slow
def test_the_demo_draws_its_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, ROOT / "examples" / "pictures_demo.py", "--output", sheet]
    subprocess.run(command, check=True, cwd=tmp_path)
    with Image.open(sheet) as image:
        assert min(image.size) > 500
