"""The processor: pixels, videos, padding, truncation, and errors that name cause and fix."""

import base64
import importlib
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from inputs import MEDIA, embed, load_video, mixed_inputs, noise_image, noise_video
from plume import PlumeProcessor, vision_plume
from plume.hub.random_checkpoint import build_tokenizer
from plume.layouts import EMBEDDER_LAYOUT
from plume.pixels_plume import CLIP_MEAN, CLIP_STD, patchify, smart_resize
from plume.start import BACKBONE_SETTINGS, processor_from_backbone
from plume.vision_plume import load_clip, load_image

PATCHES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "resize": "once"}
PATCHES |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}


def pil_processor(**limits):
    """Transformers' own processor without torchvision, whose name and place depend on the version."""
    for module, name in (("image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
                         ("image_processing_qwen2_vl", "Qwen2VLImageProcessor")):  # fmt: skip
        try:
            return getattr(importlib.import_module(f"transformers.models.qwen2_vl.{module}"), name)(**limits)
        except (ImportError, AttributeError):
            continue
    return pytest.skip("this transformers has no Qwen2-VL image processor that runs without torchvision")


QWEN2 = ({"patch_size": 14}, {})
QWEN3 = ({"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},) * 2


@pytest.mark.parametrize("backbone", [QWEN2, QWEN3], ids=["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(84, 56), (300, 200), (31, 97), (20, 900)])
def test_pixels_equal_transformers_pil_processor_bit_for_bit(backbone, mode, size):
    image = noise_image(1, *size).convert(mode)
    limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 64}
    theirs = pil_processor(**limits, **backbone[0])(images=[image], return_tensors="np")
    patches, grid = patchify([load_image(image)], {**PATCHES, **backbone[1]}, **limits)
    assert np.array_equal(patches, theirs["pixel_values"])
    assert list(grid) == theirs["image_grid_thw"][0].tolist()


def test_patches_of_a_clip_hold_consecutive_frames():
    frames = [noise_image(seed) for seed in range(4)]
    limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 64}
    clip, grid = patchify(frames, PATCHES, **limits)
    assert grid == (2, 4, 6)
    values = clip.reshape(2, 24, 3, 2, 14, 14)
    for index, frame in enumerate(frames):
        alone, _ = patchify([frame], PATCHES, **limits)
        assert np.array_equal(values[index // 2, :, :, index % 2], alone.reshape(24, 3, 2, 14, 14)[:, :, 0])


def test_an_odd_clip_repeats_its_last_frame():
    frames = [noise_image(seed) for seed in range(3)]
    limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 64}
    odd, even = (patchify(clip, PATCHES, **limits)[0] for clip in (frames, [*frames, frames[-1]]))
    assert np.array_equal(odd, even)


@pytest.mark.parametrize("mode", ["I;16", "RGB"])
def test_an_address_gives_the_pixels_of_the_file(mode, tmp_path):
    """16-bit pictures too, which transformers' loader would clip to white."""
    image = noise_image(2)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.save(tmp_path / "picture.png")
    handler = partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = load_image(f"{address}/picture.png")
        with pytest.raises(ValueError, match="404"):
            load_image(f"{address}/none.png")
        server.shutdown()
    encoded = base64.b64encode((tmp_path / "picture.png").read_bytes()).decode()
    for other in (tmp_path / "picture.png", encoded, f"data:image/png;base64,{encoded}"):
        assert np.array_equal(np.asarray(found), np.asarray(load_image(other)))
    assert np.asarray(found).std() > 10


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize("given", ["no/such/file.png", "data:image/png", "bad.eps", "http://127.0.0.1:9/a.png"])
def test_what_is_no_picture_is_a_clear_error(given, tmp_path):
    noise_image(1).save(tmp_path / "bad.eps")
    with pytest.raises(ValueError, match="could not be read"):
        load_image(tmp_path / given if given == "bad.eps" else given)


def test_a_clip_that_is_a_playlist_is_refused(tmp_path):
    (tmp_path / "clip.mp4").write_text(f"ffconcat version 1.0\nfile '{MEDIA / 'rolling_ball.mp4'}'\n")
    with pytest.raises(ValueError, match="could not be read"):
        load_video(tmp_path / "clip.mp4", num_frames=2)


def test_dark_16_bit_pictures_stay_dark():
    dark = Image.fromarray(np.full((56, 84), 200, dtype=np.uint16))
    assert dark.mode == "I;16"
    assert np.asarray(load_image(dark)).max() == 1


def test_what_sentence_transformers_says_of_a_clip_is_no_option(processor):
    video, metadata = noise_video(1, 4), {"fps": 2.0, "total_num_frames": 4}
    conversation = [{"role": "user", "content": [{"type": "video", "video": video}]}]
    render = partial(processor.apply_chat_template, tokenize=True, return_dict=True, return_tensors="pt")
    plain = render(conversation)
    told = render(conversation, videos_kwargs={"video_metadata": [metadata], "do_sample_frames": False})
    assert torch.equal(told["pixel_values_videos"], plain["pixel_values_videos"])
    with pytest.raises(ValueError, match="do_sample_frames"):
        render(conversation, videos_kwargs={"do_sample_frames": True})


@pytest.mark.parametrize("source", ["path", "pathlib", "array", "tensor", "channels first", "float", "data URI"])
def test_every_source_of_an_image_gives_the_same_pixels(source, tmp_path):
    image = noise_image(2)
    path = tmp_path / "noise.png"
    image.save(path)
    array = np.asarray(image)
    given = {
        "path": str(path),
        "pathlib": path,
        "array": array,
        "tensor": torch.tensor(array),
        "channels first": np.moveaxis(array, -1, 0),
        "float": array / 255,
        "data URI": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
    }[source]
    assert np.array_equal(np.asarray(load_image(given)), array)


def test_exif_data_that_are_cut_off_are_a_clear_error():
    file = BytesIO()
    noise_image(3).save(file, format="PNG", exif=b"II*\0")
    with pytest.raises(ValueError, match="The image"):
        load_image(Image.open(file))


def test_exif_orientation_is_applied(tmp_path):
    image = noise_image(3, 84, 56)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = load_image(tmp_path / "turned.jpg")
    assert upright.size == (56, 84)
    assert np.array_equal(np.asarray(upright), np.asarray(load_image(Image.open(tmp_path / "turned.jpg"))))


def test_sixteen_bit_grey_keeps_its_brightness():
    grey = np.linspace(0, 65535, 56 * 84).reshape(56, 84).astype(np.uint16)
    loaded = np.asarray(load_image(Image.fromarray(grey)))
    assert abs(loaded.mean() - 127.5) < 1


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(448, 448, (448, 448)), (28, 28, (56, 56)), (2000, 1000, (1400, 700))]
)
def test_smart_resize(height, width, expected):
    assert smart_resize(height, width, 28, 56 * 56, 1280 * 28 * 28) == expected


def test_a_video_file_is_sampled_evenly_over_its_length():
    frames = load_video(MEDIA / "rolling_ball.mp4", num_frames=8)
    ball = [np.asarray(frame).astype(int) for frame in frames]
    # Blueness finds the ball; it rolls from left to right over the whole clip.
    centers = [np.argmax((frame[60:80, :, 2] - frame[60:80, :, 0]).sum(0)) for frame in ball]
    assert len(frames) == 8
    assert centers == sorted(centers)
    assert centers[0] < 50
    assert centers[-1] > 110


def test_frames_arrays_and_files_are_the_same_video(model, processor):
    frames = load_video(MEDIA / "rolling_ball.mp4", num_frames=8)
    array = np.stack([np.asarray(frame) for frame in frames])
    vectors = embed(
        model,
        processor,
        [
            {"video": str(MEDIA / "rolling_ball.mp4")},
            {"video": frames},
            array,
            {"video": torch.tensor(np.moveaxis(array, -1, 1))},
        ],
    )
    assert (vectors - vectors[0]).abs().max() <= 1e-6


def test_pixel_limits_and_frames_are_settings_and_can_change_per_call(processor):
    image, video = {"image": noise_image(0, 280, 280)}, {"video": noise_video(0, 8)}

    def grids(**options):
        features = processor.process_documents([image, video], **options)
        return features["image_grid_thw"][0].tolist(), features["video_grid_thw"][0].tolist()

    assert grids() == ([1, 8, 8], [4, 4, 6])
    assert grids(max_pixels=28 * 28 * 4, num_frames=2) == ([1, 4, 4], [1, 2, 4])
    nested = {"images_kwargs": {"max_pixels": 28 * 28 * 4}, "videos_kwargs": {"num_frames": 4}}
    assert grids(**nested) == ([1, 4, 4], [2, 4, 6])
    assert grids(processor_kwargs=nested) == ([1, 4, 4], [2, 4, 6])


def test_batches_are_padded_on_the_left_and_end_in_the_latent_start(processor):
    features = processor.process_documents(mixed_inputs())
    start = processor.token_fields()["latent_start_token_id"]
    assert (features["input_ids"][:, -1] == start).all()
    assert (features["attention_mask"].diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("item", [{"text": "a red bus " * 40}, {"image": noise_image(0), "text": "a red bus " * 40}])
def test_truncation_shortens_the_text_of_the_user_only(processor, item):
    whole = processor.process_queries([item])
    short = processor.process_queries([item], max_length=100)
    assert short["input_ids"].shape[1] <= 100 < whole["input_ids"].shape[1]
    before, after = (processor.tokenizer.decode(ids["input_ids"][0]) for ids in (whole, short))
    head, tail = before.split("a red bus")[0], before[before.index("\n<anchor>") :]
    assert after.startswith(head + "a red bus a red")
    assert after.endswith(tail)


@pytest.mark.parametrize("max_length", range(60, 75))
def test_truncation_uses_the_length_that_there_is(processor, max_length):
    length = processor.process_documents(["two dogs on a sofa " * 30], max_length=max_length)["input_ids"].shape[1]
    assert length == max_length


def test_text_longer_than_the_limit_is_refused_when_truncation_is_off(processor):
    with pytest.raises(ValueError, match="truncation is off"):
        processor.process_documents(["a red bus " * 50], max_length=60, truncation=False)


def test_media_that_alone_exceed_the_limit_are_refused(processor):
    with pytest.raises(ValueError, match="without any of its text"):
        processor.process_documents([{"image": noise_image(0), "text": "a red bus"}], max_length=30)


def test_rendered_prompts_are_encoded_as_transformers_does(model, processor):
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a bus"}]}]
    conversation[0]["content"][0]["image"] = noise_image(4)
    text = processor.apply_chat_template(conversation)
    rendered = processor(text=[text], images=[noise_image(4)], return_tensors="pt")
    direct = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    assert rendered.keys() == direct.keys()
    for name in direct:
        assert torch.equal(rendered[name], direct[name])


def test_user_text_cannot_smuggle_an_image_placeholder(processor):
    features = processor.process_documents(["look <|vision_start|><|image_pad|><|vision_end|> <slt><anchor>"])
    fields = processor.token_fields()
    assert (features["input_ids"] == fields["anchor_token_id"]).sum() == 1
    assert (features["input_ids"] == fields["latent_start_token_id"]).sum() == 1
    assert "pixel_values" not in features


def _broken_png(tmp_path):
    path = tmp_path / "broken.png"
    noise_image(0).save(path)
    path.write_bytes(path.read_bytes()[:200])
    return path


def _broken_mp4(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes((MEDIA / "rolling_ball.mp4").read_bytes()[:300])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: {"image": _broken_png(folder)}, "could not be read"),
        (lambda folder: {"image": folder / "absent.png"}, "could not be read"),
        (lambda folder: {"image": 7}, "given as int"),
        (lambda folder: {"image": np.zeros((5, 5, 7), np.uint8)}, "is no picture"),
        (lambda folder: {"image": np.array([["a", "b"]])}, "is no picture"),
        (lambda folder: {"image": np.full((8, 8, 3), np.nan)}, "brightness is unknown"),
        (lambda folder: {"image": np.full((8, 8, 3), 300.0)}, "brightness is unknown"),
        (lambda folder: {"image": np.zeros((8, 8, 3), np.int32)}, "dtype int32"),
        (lambda folder: {"image": Image.fromarray(np.full((8, 8), 7.5, np.float32))}, "brightness is unknown"),
        (lambda folder: {"image": Image.fromarray(np.full((8, 8), 200, np.int32))}, "brightness is unknown"),
        (lambda folder: {"image": noise_image(0, 1000, 3)}, "200 times"),
        (lambda folder: {"video": []}, "no frames"),
        (lambda folder: {"video": np.zeros((0, 8, 8, 3), np.uint8)}, "no frames"),
        (lambda folder: {"video": _broken_mp4(folder)}, "could not be read"),
        (lambda folder: {"video": folder / "absent.mp4"}, "could not be read"),
        (lambda folder: {"video": 5}, "given as int"),
        (lambda folder: {"video": [noise_image(0), noise_image(1, 28)]}, "differ in size"),
    ],
)
def test_unusable_media_are_refused_with_the_cause(processor, tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        processor.process_documents([make(tmp_path)])


def test_a_video_file_without_pyav_names_the_extra(processor, monkeypatch):
    monkeypatch.setattr(vision_plume, "av", None)
    with pytest.raises(ImportError, match=r"plume-embedding\[video\]"):
        processor.process_documents([{"video": str(MEDIA / "rolling_ball.mp4")}])


def test_an_empty_batch_is_refused(processor):
    with pytest.raises(ValueError, match="batch is empty"):
        processor.process_queries([])
    with pytest.raises(ValueError, match="batch is empty"):
        processor(text=[])
    with pytest.raises(ValueError, match="Pass a list"):
        processor.process_queries("a red bus")


@pytest.mark.parametrize(
    "options",
    [
        {"max_pixels": 0},
        {"max_length": 0},
        {"num_frames": "8"},
        {"videos_kwargs": {"fps": 2}},
        {"max_pixel": 3136},
        {"images": [noise_image(1)]},
        {"size": {"longest_edge": 3136}},
        {"min_pixels": 28 * 28 * 64},
        {"text_kwargs": {"paddding": True}},
    ],
    ids="-".join,  # the values would name a picture by its address, another one in every process
)
def test_options_without_effect_are_refused(processor, options):
    with pytest.raises(ValueError, match="option|must be a positive integer|exceeds max_pixels"):
        processor.process_documents([noise_image(0)], **options)


@pytest.fixture
def saved(processor, tmp_path):
    """A saved processor, with settings changed or "absent"."""
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    original = json.loads(path.read_text())

    def change(**changed):
        content = {name: value for name, value in {**original, **changed}.items() if value != "absent"}
        path.write_text(json.dumps(content))
        return tmp_path

    return change


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_pixels": -5}, "max_pixels must be a positive integer, got -5"),
        ({"num_frames": 0}, "num_frames must be a positive integer"),
        ({"merge_size": 0}, "merge_size must be a positive integer"),
        ({"patch_size": "14"}, "patch_size must be a positive integer, got '14'"),
        ({"patch_size": 14.0}, "patch_size must be a positive integer"),
        ({"temporal_patch_size": True}, "temporal_patch_size must be a positive integer"),
        ({"min_pixels": None}, "min_pixels must be a positive integer"),
        ({"min_pixels": 10**7}, "min_pixels=10000000 exceeds max_pixels"),
        ({"video_min_pixels": 10**7}, "exceeds video_max_pixels"),
        ({"blank_image_size": -1}, "blank_image_size must be an integer of at least 0"),
        ({"blank_image_size": False}, "blank_image_size must be an integer of at least 0"),
        ({"image_mean": [0.5, 0.5]}, "three numbers"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "three positive numbers"),
        ({"background_color": [255, 255, 256]}, "three integers"),
        ({"background_color": "white"}, "three integers"),
        ({"resize": "twice"}, "'once' or 'released'"),
        ({"video_limits": 1}, "'frame' or 'clip'"),
        ({"fps": float("inf")}, "fps must be a positive number"),
        ({"timestamps": 1, "fps": 1.0}, "true or false"),
        ({"timestamps": True}, "timestamps need fps"),
        ({"query_prompt": 5}, "query_prompt must be a text"),
        ({"suffix": "<elt>"}, "end of the suffix"),
        ({"anchor_token": "two words"}, "does not know .'two words'"),
        ({"max_pixel": 5}, "unknown ones .'max_pixel'"),
        ({"max_pixels": "absent"}, "lacks the settings .'max_pixels'"),
        ({"image_mean": "absent"}, "lacks the settings .'image_mean'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(saved, setting, message):
    with pytest.raises(ValueError, match=message):
        PlumeProcessor.from_pretrained(saved(**setting))


def test_a_setting_given_by_the_caller_need_not_be_in_the_file(saved):
    assert PlumeProcessor.from_pretrained(saved(max_pixels="absent"), max_pixels=9999).max_pixels == 9999


LATER = ("image_mean", "image_std", "background_color", "resize", "video_limits", "fps", "min_frames", "timestamps",
         "time_positions")  # fmt: skip


def test_files_from_before_there_were_several_backbones_load(processor, saved):
    again = PlumeProcessor.from_pretrained(saved(**dict.fromkeys(LATER, "absent")))
    assert again.to_dict() == {name: value for name, value in processor.to_dict().items() if name != "auto_map"}


@pytest.mark.parametrize("name", ["processor_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("load", [PlumeProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_without_its_files_a_processor_is_refused_by_name(checkpoint, tmp_path, name, load):
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(ValueError, match=name):
        load(tmp_path / "copy")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"5", b"null", b'{"suffix": "\xff"}'])
def test_a_settings_file_that_holds_no_settings_is_refused_by_name(saved, content):
    folder = saved()
    (folder / "processor_config.json").write_bytes(content)
    with pytest.raises(ValueError, match="processor_config.json"):
        PlumeProcessor.from_pretrained(folder)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.integers(), st.floats(), st.text(max_size=6),
    st.lists(st.one_of(st.integers(-1, 260), st.floats(-1, 2), st.text(max_size=2)), max_size=4),
    st.sampled_from(["once", "clip", "<gen>", "<elt><gen>", {}]),
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_settings_file_is_used_as_it_is_or_refused(processor, saved, data):
    """No other error, and no default in place of what the file says."""
    names = sorted(processor.to_dict().keys() - {"processor_class", "auto_map"})
    changed = data.draw(st.dictionaries(st.sampled_from([*names, "other"]), VALUES, min_size=1, max_size=3))
    try:
        loaded = PlumeProcessor.from_pretrained(saved(**changed))
    except ValueError:
        return
    settings = loaded.to_dict()
    assert {name: settings[name] for name in changed} == changed


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_settings_file_is_settings_or_an_error(saved, data):
    """What is no JSON is refused by transformers, before it knows whose the file is: with an OSError that names it."""
    file = saved() / "processor_config.json"
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content[: data.draw(st.one_of(st.none(), st.integers(0, len(content))))]))
    try:
        loaded = PlumeProcessor.from_pretrained(file.parent)
    except OSError as error:
        assert "processor_config.json" in str(error)  # noqa: PT017
    except ValueError:
        return
    else:
        assert loaded.max_pixels == json.loads(file.read_text("utf-8"))["max_pixels"]


def test_padding_to_a_fixed_length(processor):
    assert processor.process_documents(["a"], padding="max_length", max_length=64)["input_ids"].shape == (1, 64)
    assert processor.process_documents(["a"], pad_to_multiple_of=50)["input_ids"].shape == (1, 50)


@pytest.mark.parametrize(
    "text",
    [
        "\u65e5\u672c\u8a9e " * 20,
        "Gr\u00fc\u00dfe " * 20,
        "bus \U0001f600 " * 20,
        "\u0430\u0432\u0442\u043e\u0431\u0443\u0441 " * 20,
    ],
)
def test_truncation_ends_for_characters_of_several_tokens(processor, text):
    longest = processor.process_documents([text])["input_ids"].shape[1]
    for max_length in range(40, longest, 3):
        assert processor.process_documents([text], max_length=max_length)["input_ids"].shape[1] <= max_length


def test_a_blank_text_with_media_is_no_text(model, processor):
    image = noise_image(0)
    with torch.no_grad():
        vectors = model(
            **processor.process_queries([image, {"image": image, "text": ""}, {"image": image, "text": " \n"}])
        ).embeddings
    assert (vectors - vectors[0]).abs().max() <= 1e-6
    cut = processor.process_queries(
        [{"image": image, "text": "a red bus"}], max_length=processor.process_queries([image])["input_ids"].shape[1]
    )
    assert torch.equal(cut["input_ids"], processor.process_queries([image])["input_ids"])


def test_a_clip_filmed_sideways_is_turned(tmp_path):
    """The display matrix of the track header, patched to a quarter turn, as phones write it."""
    data = bytearray((MEDIA / "rolling_ball.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one, zero = (0x10000).to_bytes(4, "big"), bytes(4)
    minus = (-0x10000 & 0xFFFFFFFF).to_bytes(4, "big")
    data[matrix : matrix + 36] = zero + one + zero + minus + zero + zero + zero + zero + (0x40000000).to_bytes(4, "big")
    (tmp_path / "turned.mp4").write_bytes(data)
    upright, turned = (load_video(path, 1)[0] for path in (MEDIA / "rolling_ball.mp4", tmp_path / "turned.mp4"))
    assert turned.size == (112, 168)
    assert np.array_equal(np.asarray(turned), np.asarray(upright.rotate(-90, expand=True)))


def test_more_placeholders_than_media_are_refused(processor):
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "image": noise_image(0)}]}])
    with pytest.raises(ValueError, match="2 placeholders .* but 1 images"):
        processor(text=[text, text], images=[noise_image(0)])


# Backbones


@pytest.fixture(scope="module")
def for_backbone(tmp_path_factory):
    """Processors that start from backbones of a model type."""

    def make(model_type, appended="", **options) -> PlumeProcessor:
        folder, tokenizer = tmp_path_factory.mktemp(model_type), build_tokenizer(["assistant\nassistant"] * 50)
        if appended:  # to every text, as Qwen3-Embedding's tokenizer does
            special = [(appended, tokenizer.convert_tokens_to_ids(appended))]
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"$A {appended}", special_tokens=special
            )
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        return processor_from_backbone(folder, **options)

    return make


@pytest.mark.parametrize("model_type", BACKBONE_SETTINGS)
def test_settings_of_a_backbone_are_saved(for_backbone, model_type, tmp_path):
    processor = for_backbone(model_type)
    settings = processor.to_dict()
    processor.save_pretrained(tmp_path)
    again = PlumeProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == settings
    assert BACKBONE_SETTINGS[model_type].items() <= again.to_dict().items()
    assert json.loads((tmp_path / "processor_config.json").read_text()).keys() >= BACKBONE_SETTINGS["qwen3_vl"].keys()


def test_a_backbone_without_settings_is_refused(for_backbone):
    with pytest.raises(ValueError, match="'llama' model.*qwen2_vl, qwen2_5_vl, qwen3_vl"):
        for_backbone("llama")


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 17])
def test_a_clip_gets_the_size_of_transformers_qwen3_vl(frames):
    theirs = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl").smart_resize
    try:
        theirs(2, 8, 8, factor=32)
    except ValueError:
        pytest.skip("the rule of an older transformers, which refuses small clips")
    rng = np.random.default_rng(frames)
    for height, width in rng.integers(8, 400, (20, 2)).tolist():
        limits = {"min_pixels": 32 * 32 * int(rng.integers(1, 40)), "max_pixels": 32 * 32 * int(rng.integers(40, 200))}
        _, grid = patchify([noise_image(0, width, height)] * frames, {**PATCHES, **QWEN3[1]}, **limits, whole_clip=True)
        expected = theirs(max(frames, 2), height, width, temporal_factor=2, factor=32, **limits)
        assert (grid[1] * 16, grid[2] * 16) == expected


def render_clip(processor, video, **options):
    features = processor.process_documents([{"video": video}], **options)
    return processor.tokenizer.decode(features["input_ids"][0]), features


def test_qwen3_vl_reads_the_time_of_each_pair_of_frames(for_backbone):
    """One grid row a clip; text as transformers 4.57 and the reference write it."""
    processor = for_backbone("qwen3_vl", fps=2.0)
    text, features = render_clip(processor, noise_video(1, 5))  # frames of a list are taken to be 1 / fps apart
    [(t, h, w)] = features["video_grid_thw"].tolist()
    pads = "<|video_pad|>" * (h * w // 4)
    parts = [f"<{time} seconds><|vision_start|>{pads}<|vision_end|>" for time in ("0.2", "1.2", "2.0")]
    assert t == 3
    assert f"user\n{''.join(parts)}\n<anchor>" in text


def test_qwen3_vl_samples_a_file_by_time(for_backbone):
    """The clip has 24 frames at 12 a second."""
    path, processor = MEDIA / "rolling_ball.mp4", for_backbone("qwen3_vl")
    text, _ = render_clip(processor, path)
    indices = np.linspace(0, 23, 4).round() / 12
    for first, second in indices.reshape(2, 2):
        assert f"<{(first + second) / 2:.1f} seconds><|vision_start|>" in text
    assert len(load_clip(path, num_frames=64, fps=2.5).frames) == 5
    assert len(load_clip(path, num_frames=3, fps=2.0).frames) == 3
    assert len(load_clip(path, num_frames=64, fps=0.1, min_frames=4).frames) == 4


def test_the_rate_of_frames_can_be_said(for_backbone):
    processor, frames = for_backbone("qwen3_vl", min_frames=1), noise_video(1, 8)
    text, _ = render_clip(processor, frames, videos_kwargs={"video_metadata": [{"fps": 4.0}]})
    assert text.count("seconds>") == 1
    assert "<0.9 seconds>" in text  # two frames of two seconds, the first and the last
    with pytest.raises(ValueError, match="2 entries for 1 videos"):
        render_clip(processor, frames, videos_kwargs={"video_metadata": [{}, {}]})


def test_qwen2_5_vl_is_told_the_seconds_per_temporal_patch(for_backbone):
    processor = for_backbone("qwen2_5_vl")
    features = processor.process_documents([{"video": MEDIA / "rolling_ball.mp4"}, {"video": noise_video(1)}, "a"])
    assert features["second_per_grid_ts"].tolist() == [2 / (8 / 24 * 12), 1.0]
    assert features["second_per_grid_ts"].dtype == torch.float32
    assert "second_per_grid_ts" in processor.model_input_names
    assert "second_per_grid_ts" not in processor.process_documents(["a"])


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_other_backbones_are_not_told(for_backbone, model_type):
    processor = for_backbone(model_type)
    assert "second_per_grid_ts" not in processor.model_input_names
    assert "second_per_grid_ts" not in processor.process_documents([{"video": noise_video(1)}])


def test_new_tokens_get_ids_that_are_free(for_backbone):
    """151657 and the next are taken in Qwen2.5 and Qwen3."""
    fields = for_backbone("qwen3_vl").token_fields()
    tokenizer = for_backbone("qwen3_vl").tokenizer
    assert tokenizer.convert_ids_to_tokens(fields["latent_start_token_id"]) == "<slt>"
    assert tokenizer.convert_ids_to_tokens(fields["suffix_token_ids"]) == ["<elt>", "<gen>"]


@pytest.mark.parametrize("appended", ["", "<|endoftext|>"])
@pytest.mark.parametrize(("prompt", "system"), [(None, "Represent the user's input."), ("Find it.", "Find it.")])
def test_the_embedder_prompt_is_the_published_one(for_backbone, prompt, system, appended):
    """Whose vector is the state of the last token, with what the tokenizer appends."""
    processor = for_backbone("qwen3_vl", appended, layout=EMBEDDER_LAYOUT)
    features = processor.process_queries([{"text": "a bus", "image": noise_image(0)}], prompt=prompt)
    [(t, h, w)] = features["image_grid_thw"].tolist()
    published = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        f"{'<|image_pad|>' * (t * h * w // 4)}<|vision_end|>a bus<|im_end|>\n<|im_start|>assistant\n"
    )
    fields = processor.token_fields()
    assert features["input_ids"][0].tolist() + fields["suffix_token_ids"] == processor.tokenizer(published)["input_ids"]
    assert features["input_ids"][0, -1] == fields["latent_start_token_id"]
    assert fields["suffix_token_ids"][-1] == fields["embedding_token_id"]
    assert fields["anchor_token_id"] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert list(processor.row_sources) == [fields["latent_end_token_id"], fields["latent_token_id"]]


def test_words_of_the_vocabulary_can_be_tokens_and_stay_usable_in_texts(for_backbone):
    processor = for_backbone("qwen3_vl", layout=EMBEDDER_LAYOUT)
    text = processor.apply_chat_template([{"role": "user", "content": "the assistant\nsaid <|im_end|>"}])
    assert "the assistant\nsaid < |im_end|>" in text
