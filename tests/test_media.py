"""Pictures and clips as people have them: the right pixels, or an error that says which input and why."""

import base64
import struct
import zlib
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from inputs import MEDIA, ROOT, load_video, noise_image, noise_video
from plume import content_plume, vision_plume
from plume.pixels_plume import CLIP_MEAN, CLIP_STD, patchify
from plume.vision_plume import load_clip, load_image

av = pytest.importorskip("av")


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of, each time."""
    told: list[str] = []
    for module in (vision_plume, content_plume):
        monkeypatch.setattr(module, "warn_once", told.append)
    return told


# Transparency


def logo() -> Image.Image:
    image = Image.new("RGBA", (112, 112), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((20, 20, 90, 90), fill=(0, 0, 0, 255))
    return image


def on_white(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def as_png(image: Image.Image, **options) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


GREY = Image.fromarray(np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[None], 25, axis=0))
TRANSPARENT = {
    "RGBA": logo(),
    "half": Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)),
    "LA": logo().convert("LA"),
    "PA": logo().convert("PA"),
    "P": Image.open(BytesIO(as_png(logo().quantize(4)))),
    "RGBa": logo().convert("RGBa"),
    "L of tRNS": Image.open(BytesIO(as_png(GREY, transparency=100))),
    "RGB of tRNS": Image.open(BytesIO(as_png(GREY.convert("RGB"), transparency=(50, 50, 50)))),
    "1 of tRNS": Image.open(BytesIO(as_png(GREY.convert("1"), transparency=0))),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_shows_white(name):
    image = TRANSPARENT[name]
    assert np.abs(np.asarray(load_image(image)) - on_white(image)).max() <= 1


def test_transparency_of_16_bit_grey_shows_white():
    values = np.array([[300, 9000], [20000, 65535]], dtype=np.uint16)
    found = np.asarray(load_image(as_png(Image.fromarray(values), transparency=300)))[..., 0]
    assert found.tolist() == [[255, 35], [78, 255]]


def png_of_16_bits(values: np.ndarray, transparent: tuple[int, int, int]) -> bytes:
    """Pillow writes none in colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">HHH", *transparent)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def test_transparency_of_16_bit_colour_shows_white():
    values = np.array([[[0x1234] * 3, [0xFFFF, 0, 0]]], dtype=np.uint16)
    found = np.asarray(load_image(png_of_16_bits(values, (0x1234,) * 3)))
    assert found.tolist() == [[[255, 255, 255], [255, 0, 0]]]


@pytest.mark.parametrize("source", ["array", "tensor", "channels first", "float", "file", "bytes", "data URI", "frame"])
def test_transparency_shows_white_from_every_source(source, tmp_path):
    image = logo()
    array, png = np.asarray(image), as_png(image)
    (tmp_path / "logo.png").write_bytes(png)
    given = {
        "array": array,
        "tensor": torch.tensor(array),
        "channels first": np.moveaxis(array, -1, 0),
        "float": array / 255,
        "file": tmp_path / "logo.png",
        "bytes": png,
        "data URI": "data:image/png;base64," + base64.b64encode(png).decode(),
        "frame": [image],
    }[source]
    found = load_video(given, 1)[0] if source == "frame" else load_image(given)
    assert np.array_equal(np.asarray(found), on_white(image))


def test_a_transparent_gif_as_a_clip_shows_white(tmp_path):
    logo().save(tmp_path / "logo.gif", save_all=True, append_images=[logo().rotate(90)])
    assert np.asarray(load_video(tmp_path / "logo.gif", 2)[1])[0, 0].tolist() == [255, 255, 255]


def test_the_background_is_a_setting(processor, monkeypatch):
    monkeypatch.setattr(processor, "background_color", [255, 0, 0])
    seen = processor.process_documents([logo()])["pixel_values"]
    red = Image.new("RGB", (112, 112), "red")
    red.paste(logo(), mask=logo())
    assert torch.equal(seen, processor.process_documents([red])["pixel_values"])


def test_sentence_transformers_shows_white_too(tmp_path):
    transformers = pytest.importorskip("sentence_transformers")
    model = transformers.SentenceTransformer(str(ROOT / "checkpoints" / "plume-tiny"), device="cpu")
    logo().save(tmp_path / "logo.png")
    uri = "data:image/png;base64," + base64.b64encode(as_png(logo())).decode()
    given_items = [logo(), str(tmp_path / "logo.png"), uri, {"image": uri}, {"image": logo().convert("LA")}]
    vectors = model.encode([load_image(logo()), *given_items], convert_to_tensor=True)
    assert (vectors - vectors[0]).abs().max() <= 1e-6


# Sources


PICTURE = as_png(noise_image(2))


def name_of(source: str, folder: Path, name: str, content: bytes):
    path = folder / name
    path.write_bytes(content)
    return {
        "path": str(path),
        "Path": path,
        "relative": name,
        "file URL": path.as_uri(),
        "bytes": content,
        "base64": base64.b64encode(content).decode(),
        "data URI": "data:application/x;base64," + base64.b64encode(content).decode(),
    }[source]


SOURCES = ["path", "Path", "relative", "file URL", "bytes", "base64", "data URI"]


@pytest.mark.parametrize("name", ["a.png", "12:30 show.png", "50%25 off #1.png"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_a_picture_gives_its_pixels(source, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_image(name_of(source, tmp_path, name, PICTURE))
    assert np.array_equal(np.asarray(found), np.asarray(noise_image(2)))


@pytest.mark.parametrize("name", ["a.mp4", "12:30 show.mp4", "50%25 off #1.mp4"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_a_clip_gives_its_frames(source, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = MEDIA / "rolling_ball.mp4"
    found = load_video(name_of(source, tmp_path, name, clip.read_bytes()), 2)
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in load_video(clip, 2)]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_processor_takes_bytes_and_paths(processor, kind):
    path = MEDIA / {"image": "bus.png", "video": "rolling_ball.mp4"}[kind]
    name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    plain = processor.process_documents([{kind: str(path)}])[name]
    for given_item in ({kind: path.read_bytes()}, {kind: path}, path, {kind: [path.as_uri()]}):
        assert torch.equal(processor.process_documents([given_item])[name], plain)


def test_a_list_of_clips_in_memory_is_several(processor):
    clip = (MEDIA / "rolling_ball.mp4").read_bytes()
    uri = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    assert len(processor.process_documents([{"video": [uri, uri]}])["video_grid_thw"]) == 2


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_as_a_picture_the_first_frame_is_seen_and_it_is_said(ending, tmp_path, warnings):
    frames = noise_video(3, 3)
    path = tmp_path / f"animation.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    with Image.open(path) as file:
        first = np.asarray(file.convert("RGB"))
    assert np.array_equal(np.asarray(load_image(path)), first)
    [warning] = warnings
    assert "video" in warning


def test_files_are_closed(tmp_path, recwarn):
    (tmp_path / "a.png").write_bytes(PICTURE)
    noise_image(0).save(tmp_path / "a.gif", save_all=True, append_images=[noise_image(1)])
    for name in ("a.png", "a.gif"):
        load_image(tmp_path / name)
    load_video(tmp_path / "a.gif", 2)
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


# Clips


def moving(count: int, width: int = 64, height: int = 64):
    """Frames that tell their number: a bar that grows."""
    for index in range(count):
        values = np.zeros((height, width, 3), dtype=np.uint8)
        values[:, : (index + 1) * width // count] = 255
        yield av.VideoFrame.from_ndarray(values, format="rgb24")


def widths(frames) -> list[float]:
    """Share of each frame that its bar covers."""
    return [float((np.asarray(frame)[..., 0] > 128).mean()) for frame in frames]


def write_clip(
    path: Path, count: int = 40, *, pictures=True, sound=False, cover=False, aspect=None, flags="", hidden: int = 0
) -> Path:
    """A clip of which the first ``hidden`` frames lie before its beginning."""
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        streams = []
        if cover:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic.value
            streams.append((stream, moving(1, 32, 32)))
        if pictures:
            stream = container.add_stream("mpeg4", rate=12)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size = 10
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            streams.append((stream, moving(count)))
        if sound:
            streams.append((container.add_stream("aac", rate=16000), silence()))
        for stream, frames in streams:
            for frame in [*frames, None]:
                for packet in stream.encode(frame):
                    if hidden:
                        packet.pts, packet.dts = (
                            time - int(hidden / 12 / packet.time_base) for time in (packet.pts, packet.dts)
                        )
                    container.mux(packet)
    return path


def silence():
    for index in range(8):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, index * 1024
        yield frame


@pytest.mark.parametrize("flags", ["", "frag_keyframe", "frag_keyframe+empty_moov"])
def test_all_fragments_of_a_clip_are_seen(flags, tmp_path):
    found = widths(load_video(write_clip(tmp_path / "clip.mp4", 40, flags=flags), 4))
    assert found == pytest.approx([index / 40 for index in (1, 14, 27, 40)], abs=0.03)


@pytest.mark.parametrize("claimed", [0, 1, 7, 12, 13, 1000, 2**31 - 1])
def test_what_a_header_says_of_its_frames_changes_nothing(claimed, tmp_path):
    path = write_clip(tmp_path / "clip.avi", 12)
    expected = [frame.tobytes() for frame in load_video(path, 4)]
    data = bytearray(path.read_bytes())
    data[data.index(b"strh") + 40 : data.index(b"strh") + 44] = struct.pack("<I", claimed)  # dwLength
    data[data.index(b"avih") + 24 : data.index(b"avih") + 28] = struct.pack("<I", claimed)  # dwTotalFrames
    path.write_bytes(data)
    assert [frame.tobytes() for frame in load_video(path, 4)] == expected
    assert widths(load_video(path, 2))[-1] == 1


def test_frames_that_are_cut_off_are_not_seen(tmp_path):
    """An editor cuts a clip by a list in front of it; its packets stay, as they are needed to decode the others."""
    clip = load_clip(write_clip(tmp_path / "clip.mp4", 20, hidden=5), 4)
    assert widths(clip.frames) == pytest.approx([index / 20 for index in (6, 10, 15, 20)], abs=0.04)
    assert clip.times == pytest.approx([index / 12 for index in (0, 4, 9, 14)])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_cover_picture_is_not_the_clip(name, tmp_path):
    frames = load_video(write_clip(tmp_path / name, 12, cover=True), 8)
    assert len(frames) == 8
    assert frames[0].size == (64, 64)


@pytest.mark.parametrize("cover", [False, True])
def test_sound_is_no_clip(cover, tmp_path):
    path = write_clip(tmp_path / "song.mp4", pictures=False, sound=True, cover=cover)
    with pytest.raises(ValueError, match=r"song.mp4.*no moving pictures"):
        load_video(path, 4)


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2), (128, 64)), (Fraction(1, 2), (64, 128)), (None, (64, 64))])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_clip_has_the_size_it_is_shown_at(name, aspect, size, tmp_path):
    path = write_clip(tmp_path / name, 12, aspect=aspect)
    assert {frame.size for frame in load_video(path, 4)} == {size}


def test_a_clip_whose_pixels_are_absurdly_long_is_refused(tmp_path, monkeypatch):
    """As a picture is that claims more pixels than Pillow decodes."""
    path = write_clip(tmp_path / "clip.mp4", 3, aspect=Fraction(4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match=r"clip.mp4.*shown at 256x64 pixels"):
        load_video(path, 2)


def test_a_file_of_another_machine_is_refused():
    path = (MEDIA / "bus.png").as_uri().replace("file://", "file://elsewhere")
    with pytest.raises(ValueError, match="no such file"):
        load_image(path)


def test_an_array_that_is_no_clip_is_refused(processor):
    with pytest.raises(ValueError, match=r"shape \(8, 8, 3\)"):
        processor.process_documents([{"video": np.zeros((8, 8, 3), np.uint8)}])


# Errors and warnings


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"image": "truncated.jpg"}, "truncated.jpg"),
        ({"video": "broken.mp4"}, "broken.mp4"),
        ({"image": "thin.png"}, "thin.png.*200 times"),
        ({"image": 7}, "given as int"),
        ("", "is empty"),
        (3.5, "given as float"),
        ([{"role": "query", "content": "a"}], "role 'query'"),
        ({"text": "a \ud800 b"}, "lone surrogate '.ud800' at position 2"),
        ({"text": "a" * 40, "image": [noise_image(0, 200, 200)] * 4}, "without any of its text"),
    ],
)
def test_an_error_says_which_input_and_which_file(processor, tmp_path, monkeypatch, bad, reason):
    monkeypatch.chdir(tmp_path)
    noise_image(0).save("whole.jpg")
    Path("truncated.jpg").write_bytes(Path("whole.jpg").read_bytes()[:1000])
    Path("broken.mp4").write_bytes((MEDIA / "rolling_ball.mp4").read_bytes()[:300])
    noise_image(0, 1000, 3).save("thin.png")
    with pytest.raises(ValueError, match=rf"^Input 2: .*{reason}"):
        processor.process_documents(["a bus", {"image": noise_image(1)}, bad, "a dog"], max_length=60)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("hoilday.jpg", True),
        ("photos/report.PDF", True),
        ("clip.mp4?t=3", True),
        ("a dog.", False),
        ("see a.jpg and b.jpg\nfor more about a.jpg", False),
        ({"text": "a.jpg", "image": noise_image(0)}, False),
    ],
)
def test_a_text_that_may_be_meant_as_a_file_is_embedded_with_a_warning(processor, warnings, text, warned):
    processor.process_documents([text])
    assert len(warnings) == warned


# Long texts


@pytest.mark.parametrize("piece", ["a red bus at a stop. ", "\u65e5\u672c\u8a9e\u306e\u6587", "x", "\n"])
def test_of_a_text_of_a_megabyte_only_what_can_matter_is_read(processor, piece, monkeypatch, caplog):
    read, real = [], processor.tokenizer._encode_plus
    monkeypatch.setattr(
        processor.tokenizer, "_encode_plus", lambda text, **k: read.append(len(text)) or real(text, **k)
    )
    text = "start " + piece * (1_000_000 // len(piece)) + "end"
    ids = processor.process_documents([text])["input_ids"]
    assert (0 if piece == "\n" else 4090) <= ids.shape[1] <= 4096  # blanks at the end of a text are dropped
    assert sum(read) <= 20 * 4096 * 8
    assert "indexing errors" not in caplog.text


def test_a_long_text_is_cut_where_a_whole_reading_would_cut_it(processor):
    text = " ".join(f"word{index}" for index in range(8000))
    ids = processor.process_documents([text], max_length=300)["input_ids"]
    whole = processor.process_documents([text], max_length=10**6)["input_ids"]
    differ = (ids[0] != whole[0, : ids.shape[1]]).nonzero()
    assert ids.shape[1] > 295
    assert differ[0] >= 285  # the end of the prompt


def test_a_long_text_is_refused_where_truncation_is_off(processor):
    with pytest.raises(ValueError, match="truncation is off"):
        processor.process_documents(["a red bus " * 100_000], truncation=False)


# The released checkpoint's pixels


def released_patches(image: Image.Image, max_pixels: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Straight from the description: two libraries resize one after the other; no EXIF; alpha on white."""
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        image = white
    image = image.convert("RGB")
    width, height = image.size
    rows, columns = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if rows * columns > 12845056:
        shrink = (height * width / 12845056) ** 0.5
        rows, columns = (max(28, int(side / shrink / 28) * 28) for side in (height, width))
    elif rows * columns < 3136:
        grow = (3136 / (height * width)) ** 0.5
        rows, columns = (-int(-side * grow // 28) * 28 for side in (height, width))
    image = image.resize((columns, rows), Image.BICUBIC)
    settings = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "resize": "once"}
    settings |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    return patchify([image], settings, min_pixels=784, max_pixels=max_pixels)


def released(processor, image, max_pixels=28 * 28 * 100):
    features = processor.process_documents([{"image": image}], max_pixels=max_pixels)
    return features["pixel_values"].numpy(), tuple(features["image_grid_thw"][0].tolist())


@pytest.mark.parametrize("size", [(84, 56), (1000, 700), (713, 397), (10, 1000), (20, 20), (399, 431)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_released_pipeline_resizes_twice(processor, monkeypatch, size, mode):
    monkeypatch.setattr(processor, "resize", "released")
    image = noise_image(1, *size).convert(mode)
    if mode == "RGBA":
        image.putalpha(noise_image(2, *size).convert("L"))
    patches, grid = released(processor, image)
    expected, expected_grid = released_patches(image, 28 * 28 * 100)
    assert grid == expected_grid
    assert np.array_equal(patches, expected)


def test_the_released_pipeline_leaves_a_photo_as_it_was_stored(processor, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = BytesIO()
    noise_image(3, 84, 56).save(photo, "JPEG", exif=exif)
    assert released(processor, photo.getvalue())[1] == (1, 6, 4)
    monkeypatch.setattr(processor, "resize", "released")
    assert released(processor, photo.getvalue())[1] == (1, 4, 6)


def test_the_released_pipeline_resizes_frames_alike(processor, monkeypatch):
    monkeypatch.setattr(processor, "resize", "released")
    frames = [noise_image(seed, 713, 397) for seed in range(2)]
    seen = processor.process_documents([{"video": frames}], max_pixels=28 * 28 * 100)["pixel_values_videos"].numpy()
    for index, frame in enumerate(frames):
        alone = released_patches(frame, 28 * 28 * 100)[0].reshape(len(seen), 3, 2, 196)
        assert np.array_equal(seen.reshape(len(seen), 3, 2, 196)[:, :, index], alone[:, :, 0])


# Fuzz: whatever the bytes, pixels or one of our own errors


@cache
def seeds(kind: str) -> list[bytes]:
    files = []
    if kind == "image":
        for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000"):
            file = BytesIO()
            image = noise_image(1, 24, 16) if format != "PNG" else TRANSPARENT["half"]
            options = {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"} if format in ("JPEG", "WEBP") else {}
            image.save(file, format, **options)
            files.append(file.getvalue())
    return files


def mutate(data: st.DataObject, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers are at the beginning.
        place = data.draw(st.integers(0, min(len(changed), data.draw(st.sampled_from([64, 1 << 20]))) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(1, len(changed)))] if data.draw(st.booleans()) else changed)


FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@FUZZ
@given(data=st.data())
def test_a_damaged_picture_is_pixels_or_an_error(data):
    content = mutate(data, data.draw(st.sampled_from(seeds("image"))))
    try:
        image = load_image(content)
    except ValueError:
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0


@settings(FUZZ, max_examples=150)
@given(data=st.data())
def test_a_damaged_clip_is_frames_or_an_error(data, tmp_path_factory):
    content = mutate(data, data.draw(st.sampled_from(clips(tmp_path_factory))))
    try:
        clip = load_clip(content, 3, fps=2.0)
    except ValueError:
        return
    assert 1 <= len(clip.frames) <= 3
    assert len(clip.times) == len(clip.frames)
    assert {frame.mode for frame in clip.frames} == {"RGB"}


CLIPS: list[bytes] = []


def clips(tmp_path_factory) -> list[bytes]:
    if not CLIPS:
        folder = tmp_path_factory.mktemp("clips")
        for name in ("a.mp4", "a.mkv", "a.avi"):
            CLIPS.append(write_clip(folder / name, 5).read_bytes())
        noise_image(0, 16, 16).save(folder / "a.gif", save_all=True, append_images=[noise_image(1, 16, 16)])
        CLIPS.append((folder / "a.gif").read_bytes())
    return CLIPS


@settings(FUZZ, max_examples=200)
@given(
    source=st.one_of(
        st.text(max_size=60), st.binary(max_size=60), st.text(max_size=30).map("data:".__add__),
        st.text(max_size=30).map("file:".__add__), st.lists(st.integers(), max_size=2), st.none(), st.floats(),
    )
)  # fmt: skip
@pytest.mark.parametrize("load", [load_image, lambda source: load_video(source, 2)])
def test_any_source_is_media_or_an_error(load, source):
    with pytest.raises(ValueError):  # noqa: PT011
        load(source)
