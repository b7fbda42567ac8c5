"""Rationales that a writer adds to pairs: complete whatever the server does, never asked twice, and trained on."""

import json
import random
import re
import runpy
import signal
import socket
import sys
import threading
import time
from base64 import b64decode
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from corpus import write_corpus
from PIL import Image
from transformers import AutoModelForImageTextToText, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from inputs import ROOT, noise_image

pytest.importorskip("datasets", reason="training data need the extra `train`")

from processes import start

from plume.hub.random_checkpoint import build_tokenizer, save_random_plume
from plume.playground.corpora import write_training
from plume.training.data import load_rows, parse_row, read_pair
from plume.training.rationales import Journal, LocalWriter, Rationale, parse_reply, writers
from plume.training.rationales.__main__ import main
from plume.training.rationales.prompts import FormatError

openai_only = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("openai") is None, reason="needs the extra `rationales`"
)


# What a writer is asked and how it is read


@pytest.mark.parametrize(
    "text",
    [
        "<thinking>One. Two.</thinking>\n<answer>three</answer>",
        "<think>One. Two.</think><answer>three</answer>",
        "<think>Let me see: <answer>no</answer></think>\n<thinking> One. Two. </thinking> so <answer> three </answer>.",
    ],
)
def test_thinking_and_answer_are_read(text):
    assert parse_reply(text) == Rationale("One. Two.", "three")


UNUSABLE = "tags within tags or characters that no row can hold"


@pytest.mark.parametrize(
    ("text", "is_cut", "kind"),
    [
        ("", False, "no text"),
        ("three", False, "no thinking"),
        ("<thinking>One.</thinking>", False, "no answer"),
        ("<thinking> </thinking><answer>three</answer>", False, "no thinking"),
        ("<thinking>One.", True, "no end within --max-tokens"),
        ("<thinking>\0</thinking><answer>three</answer>", False, UNUSABLE),
        ("<thinking>\ud83d</thinking><answer>three</answer>", False, UNUSABLE),
        ("<thinking>One </think> two.</thinking><answer>three</answer>", False, UNUSABLE),
    ],
)
def test_a_reply_without_a_rationale_is_refused_by_its_fault(text, is_cut, kind):
    with pytest.raises(FormatError) as refused:
        parse_reply(text, is_cut)
    assert refused.value.kind == kind


def test_training_reads_thinking_and_answer_of_a_rationale_column():
    reply = Rationale("One. Two.", "three").as_reply()
    pair = parse_row({"query": "a", "positive": "b", "rationale_query": reply, "rationale_positive": "Plain words."})
    assert (pair.query.rationale, pair.query.answer) == ("One. Two.", "three")
    assert (pair.target.rationale, pair.target.answer) == ("Plain words.", "")


def test_a_line_that_a_kill_cut_is_dropped(tmp_path):
    path = tmp_path / "replies.jsonl"
    with Journal(path).opened() as journal:
        journal.add("a", Rationale("One.", "1"))
    path.write_bytes(path.read_bytes() + b'{"key": "b", "thi')
    with Journal(path).opened() as journal:
        assert journal.found == {"a": Rationale("One.", "1")}
        journal.add("c", Rationale("Three.", "3"))
    with Journal(path).opened() as journal:
        assert list(journal.found) == ["a", "c"]


def test_a_second_run_on_the_same_output_is_refused(tmp_path):
    with (
        Journal(tmp_path / "r").opened(),
        pytest.raises(ValueError, match="Another run"),
        Journal(tmp_path / "r").opened(),
    ):
        pass


# A server


class Server(ThreadingHTTPServer):
    """A local endpoint. ``faults`` says by text what its first requests meet; after them replies are good."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.delay, self.requests, self.bodies = {}, 0.0, Counter(), {}
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the server's."""


GOOD = {"usage": {"prompt_tokens": 100, "completion_tokens": 20}}


def completion(text, reason="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], **GOOD}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][0]["content"]
        text = next(
            (part["text"][10:] for part in parts if part.get("text", "").startswith("The text:")), "no text"
        ).strip()
        kind = "query" if "searches with" in parts[0]["text"] else "positive"
        with self.server.lock:
            name = f"{kind} {text}"
            seen, self.server.requests[name] = self.server.requests[name], self.server.requests[name] + 1
            self.server.bodies[name] = parts
        faults = self.server.faults.get(text, [])
        fault = faults[seen] if seen < len(faults) else "good"
        time.sleep(self.server.delay)
        getattr(self, f"answer_{fault}")(name)

    def send(self, status, content, kind="application/json", **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def answer_good(self, name):
        self.send(200, completion(f"<thinking>I read: {name}. It is short.</thinking><answer>about {name}</answer>"))

    def answer_500(self, name):
        self.send(500, {"error": {"message": "out of order"}}, **{"retry-after-ms": "20"})

    def answer_429(self, name):
        self.send(429, {"error": {"message": "slow down"}}, **{"Retry-After": "0.05"})

    def answer_400(self, name):
        self.send(400, {"error": {"message": "too long"}})

    def answer_401(self, name):
        self.send(401, {"error": {"message": "wrong key"}})

    def answer_stall(self, name):
        time.sleep(1.5)
        self.answer_good(name)

    def answer_bare(self, name):
        self.send(200, completion("I would rather not."))

    def answer_cut(self, name):
        self.send(200, completion("<thinking>I read: ", "length"))

    def answer_half(self, name):
        self.send(200, completion("<thinking>\ud83d</thinking><answer>half an emoji</answer>"))

    def answer_empty(self, name):
        self.send(200, {})

    def answer_broken(self, name):
        self.send(200, b'{"choices": [')

    def answer_page(self, name):
        self.send(200, b"<html>Bad gateway</html>", "text/html")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def write_pairs(path: Path, rows: int) -> Path:
    lines = [{"query": f"question {index}", "positive": f"reply {index}"} for index in range(rows)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def command(server, pairs: Path, output: Path, *more) -> list[str]:
    return [str(pairs), "--output", str(output), "--endpoint", server.url, "--model", "m", *map(str, more)]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(rows: int) -> list[dict]:
    reply = "<think>I read: {0}. It is short.</think><answer>about {0}</answer>".format
    return [
        {
            "query": f"question {index}", "positive": f"reply {index}",
            "rationale_query": reply(f"query question {index}"), "rationale_positive": reply(f"positive reply {index}"),
        }
        for index in range(rows)
    ]  # fmt: skip


FAULTS = ("500", "429", "stall", "bare", "cut", "half", "empty", "broken", "page")


@openai_only
def test_the_output_is_complete_whatever_the_server_does_now_and_then(server, tmp_path, capsys):
    server.faults = {f"question {index}": [fault] for index, fault in enumerate(FAULTS)}
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", 12), tmp_path / "out.jsonl"
    assert main(command(server, pairs, output, "--timeout", 0.5)) == 0
    assert read(output) == expected(12)
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()
    said = capsys.readouterr().out
    assert f"SENDS 24 texts, 0 pictures to {server.url} (model m): 24 different sides of 12 rows" in said
    for problem in ("1 with no thinking", "1 with no end within --max-tokens"):
        assert problem in said


@openai_only
def test_what_fails_for_good_is_left_out_counted_and_asked_again_by_the_next_run(server, tmp_path, capsys):
    server.faults = {"question 1": ["400"], "reply 2": ["bare"] * 3}
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", 3), tmp_path / "out.jsonl"
    pairs.write_text(pairs.read_text() + '{"query": "alone"}\nno row\n')
    assert main(command(server, pairs, output)) == 1
    rows, whole = read(output), expected(3)
    del whole[1]["rationale_query"], whole[2]["rationale_positive"]
    assert rows == [*whole, {"query": "alone"}]
    failures = read(tmp_path / "out.jsonl.failures.jsonl")
    assert [(Path(each["place"]).name, each["side"]) for each in failures] == [
        ("pairs.jsonl:2", "query"), ("pairs.jsonl:3", "positive"), ("pairs.jsonl:4", "both"), ("pairs.jsonl:5", "both")
    ]  # fmt: skip
    reasons = [each["reason"] for each in failures]
    assert "too long" in reasons[0]
    assert "no thinking; it begins 'I would rather not.'" in reasons[1]
    assert "no positive" in reasons[2]
    before = sum(server.requests.values())
    assert main(command(server, pairs, output)) == 1  # two rows stay unusable
    assert sum(server.requests.values()) == before + 2
    assert read(output) == [*expected(3), {"query": "alone"}]
    assert "4 sides or rows are left" in capsys.readouterr().err


@openai_only
@pytest.mark.parametrize(
    ("fault", "match"),
    [("401", "1 times in a row.*Authentication.*OPENAI_API_KEY"), ("400", "3 times in a row.*too long")],
)
def test_a_server_that_answers_nothing_is_given_up_and_nothing_is_lost(server, tmp_path, monkeypatch, fault, match):
    monkeypatch.setattr(writers, "_MOST_IN_A_ROW", 3)
    server.faults = {f"question {index}": [fault] for index in range(5, 30)}
    server.faults |= {f"reply {index}": [fault] for index in range(5, 30)}
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", 30), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=match):
        main(command(server, pairs, output, "--concurrency", 1))
    assert not output.exists()
    assert len(read(tmp_path / "out.jsonl.replies.jsonl")) == 10
    server.faults = {}
    assert main(command(server, pairs, output)) == 0
    assert read(output) == expected(30)


@pytest.mark.slow
@openai_only
def test_after_kills_at_random_moments_the_output_is_that_of_an_uninterrupted_run(server, tmp_path):
    pairs, output, rows = write_pairs(tmp_path / "pairs.jsonl", 60), tmp_path / "killed.jsonl", 60
    journal = tmp_path / "killed.jsonl.replies.jsonl"
    server.faults, server.delay = {f"question {index}": ["bare"] for index in range(0, 60, 7)}, 0.05
    assert main(command(server, pairs, tmp_path / "whole.jsonl")) == 0
    draw, stored, before, server.requests = random.Random(0), 0, {}, Counter()
    for _ in range(5):
        process = start(main, command(server, pairs, output, "--concurrency", 4))
        wanted = stored + draw.randint(1, 20)
        while process.is_alive() and (journal.read_bytes().count(b"\n") if journal.exists() else 0) < wanted:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        assert not output.exists()
        time.sleep(0.1)  # requests in flight end
        done = journal.read_bytes().splitlines(keepends=True)
        known = [json.loads(line)["answer"].removeprefix("about ") for line in done if line.endswith(b"\n")]
        assert {name: server.requests[name] for name in before} == before, "asked again after it was stored"
        before, stored = {name: server.requests[name] for name in known}, len(known)
    assert main(command(server, pairs, output)) == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert read(output) == expected(rows)
    assert {name: server.requests[name] for name in before} == before, "asked again after it was stored"
    assert len(server.requests) == 2 * rows


@openai_only
def test_equal_sides_are_asked_once_and_other_models_anew(server, tmp_path):
    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    pairs.write_text('{"query": "a", "positive": "b"}\n' * 5 + '{"query": "b", "positive": "a"}\n')
    assert main(command(server, pairs, output)) == 0
    assert server.requests == {"query a": 1, "positive b": 1, "query b": 1, "positive a": 1}
    arguments = command(server, pairs, output)
    arguments[arguments.index("m")] = "other"
    assert main(arguments) == 0
    assert set(server.requests.values()) == {2}


@openai_only
def test_a_sample_is_printed_stored_and_not_asked_again(server, tmp_path, capsys):
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", 20), tmp_path / "out.jsonl"
    assert main(command(server, pairs, output, "--sample", 5)) == 0
    said = capsys.readouterr().out
    assert not output.exists()
    assert sum(server.requests.values()) == 10
    assert said.startswith("A sample of 5 rows of the following. SENDS 40 texts")
    assert said.count("<think>I read: query question ") == said.count("<think>I read: positive reply ") == 5
    assert "All 40 sides at this rate: about 4,000 tokens in and 800 out." in said
    assert main(command(server, pairs, output, "--limit", 8)) == 0
    assert read(output) == expected(8)
    assert max(server.requests.values()) == 1


@openai_only
def test_requests_keep_to_the_rate_repeated_ones_included(server, tmp_path, monkeypatch):
    waits = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=waits.append)
    monkeypatch.setattr(writers, "time", clock)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 4)
    server.faults = {"question 0": ["500", "500"]}
    assert main(command(server, pairs, tmp_path / "out.jsonl", "--requests-per-minute", 600)) == 0
    assert sorted(waits) == pytest.approx([0.1 * place for place in range(10)])


@openai_only
def test_pictures_and_clips_are_sent_as_pictures_and_rows_keep_their_format(server, tmp_path):
    pairs = write_corpus(tmp_path, rows=6)
    stripped = re.sub(r"<think>.*?<gen_emb>", "", pairs.read_text())
    noise_image(0, 3000, 40).save(tmp_path / "media" / "wide.png")
    photo = Image.new("RGB", (40, 20), "red")
    exif = photo.getexif()
    exif[0x010F] = "secret camera"
    photo.save(tmp_path / "media" / "photo.jpg", exif=exif)
    rows = [{"query": {"text": "two", "image": ["wide.png", "photo.jpg"]}, "positive": "photo.jpg"}]
    pairs.write_text(stripped + "\n".join(map(json.dumps, rows)) + "\n")
    output = tmp_path / "media" / "out.jsonl"
    assert main(command(server, pairs, output, "--media-root", tmp_path / "media")) == 0
    sent = [part["image_url"]["url"] for part in server.bodies["query two"][1:3]]
    assert all(url.startswith("data:image/jpeg;base64,") for url in sent)
    assert "secret camera" not in "".join(b64decode(url.partition(",")[2]).decode("latin-1") for url in sent)
    wide, small = (Image.open(BytesIO(b64decode(url.partition(",")[2]))) for url in sent)
    assert (max(wide.size), small.size) == (1024, (40, 20))
    assert (
        len([part for part in server.bodies["query Find the sentence about this clip."] if part["type"] == "image_url"])
        == 2
    )
    before, after = load_rows([str(pairs)]), load_rows([str(output)])
    for old, new in zip(before, after, strict=True):
        was, now = read_pair(old, tmp_path / "media"), read_pair(new, tmp_path / "media")
        assert now.query.content() == was.query.content()
        assert now.target.content() == was.target.content()
        for kind, side in (("query", now.query), ("positive", now.target)):
            assert side.rationale.startswith(f"I read: {kind} ")
            assert side.answer.startswith(f"about {kind} ")
    assert {"rationale_query", "rationale_positive"} <= read(output)[-1].keys()


@openai_only
def test_rationales_that_are_there_stay(server, tmp_path):
    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    pairs.write_text(json.dumps({"q": "a", "positive": "b", "rationale_positive": "Mine."}) + "\n")
    assert main(command(server, pairs, output, "--column", "query=q")) == 0
    assert server.requests == {"query a": 1}
    assert read(output)[0]["rationale_positive"] == "Mine."


@pytest.mark.slow
@openai_only
def test_the_file_is_trained_on(server, tmp_path, capsys):
    pytest.importorskip("trl", reason="training needs the extra `train`")
    from plume.training.train import main as train

    pairs, output = write_pairs(tmp_path / "pairs.jsonl", 6), tmp_path / "with_rationales.jsonl"
    assert main(command(server, pairs, output)) == 0
    save_random_plume(tmp_path / "model", num_latent_steps=2, max_latent_steps=4)
    arguments = [
        str(tmp_path / "model"),
        str(output),
        str(tmp_path / "out"),
        "--use_cpu",
        "true",
        "--report_to",
        "none",
    ]
    train([*arguments, "--dry_run", "true", "--stage_weights", "1", "1", "1", "1", "1"])
    assert "I read: query question 0" in capsys.readouterr().out
    train([*arguments, "--max_steps", "2", "--verdict_pairs", "0", "--save_strategy", "no"])
    assert (tmp_path / "out" / "model.safetensors").exists()


MISTAKES = [
    (["--endpoint", "http://127.0.0.1:9/v1"], "--endpoint URL and --model NAME go together"),
    (["--writer", "x", "--model", "m"], "--endpoint URL and --model NAME go together"),
    (["--writer", "x", "--output", "out.csv"], "let its name end in .jsonl"),
    (["--writer", "x", "--output", "pairs.jsonl"], "is one of the inputs"),
    (["--writer", "x", "--concurrency", "0"], "--concurrency 0 allows nothing"),
]


@pytest.mark.parametrize(("more", "match"), MISTAKES)
def test_mistakes_are_named_before_anything_is_read(tmp_path, monkeypatch, more, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(match)):
        main(["pairs.jsonl", "--output", "out.jsonl", *more])
    assert not list(tmp_path.iterdir())


@openai_only
def test_a_missing_key_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 1)
    with pytest.raises(ValueError, match="Put it into OPENAI_API_KEY"):
        main([str(pairs), "--output", str(tmp_path / "o.jsonl"), "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"])


def test_a_missing_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 1)
    with pytest.raises(ImportError, match=r"plume-embedding\[rationales\]"):
        main([str(pairs), "--output", str(tmp_path / "o.jsonl"), "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"])


# A model on this machine

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


class PictureProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor without its reader of clips, which needs torchvision; a writer gets clips as pictures."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = map(
            tokenizer.convert_tokens_to_ids, (self.image_token, self.video_token)
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="module")
def model_and_processor(backbone):
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 4)
    processor = PictureProcessor(images, build_tokenizer(), chat_template=TEMPLATE)
    return AutoModelForImageTextToText.from_pretrained(backbone), processor


@pytest.fixture
def local(model_and_processor, monkeypatch):
    def load(cls, name, batch_size, max_tokens):
        return cls(*model_and_processor, name, batch_size, max_tokens)

    def connect(*args):
        raise AssertionError("a local writer must not connect")

    monkeypatch.setattr(LocalWriter, "load", classmethod(load))
    monkeypatch.setattr(socket.socket, "connect", connect)
    return model_and_processor


def mixed_pairs(folder: Path) -> Path:
    for seed in range(3):
        noise_image(seed, 56 + 28 * seed).save(folder / f"{seed}.png")
    rows = [
        {"query": "a red bus", "positive": "0.png"},
        {"query": {"text": "two", "image": ["0.png", "2.png"]}, "positive": "a longer text about a red bus at a stop"},
        {"query": {"video": ["1.png", "1.png", "1.png"]}, "positive": "1.png"},
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder / "pairs.jsonl"


def test_a_local_model_sends_nothing_and_its_format_problems_are_counted(local, tmp_path, capsys):
    pairs, output = mixed_pairs(tmp_path), tmp_path / "out.jsonl"
    arguments = [str(pairs), "--output", str(output), "--writer", "tiny", "--batch-size", "2", "--max-tokens", "4"]
    assert main(arguments) == 1  # random weights write no rationale
    said = capsys.readouterr().out
    assert "Reads 3 texts, 4 pictures and up to 8 frames of each of 1 clips on this machine, sends nothing" in said
    assert "6 with no end within --max-tokens" in said
    assert read(output) == read(pairs)
    assert {each["side"] for each in read(tmp_path / "out.jsonl.failures.jsonl")} == {"query", "positive"}


def test_a_local_model_writes_rationales(local, tmp_path, monkeypatch):
    import torch

    model, processor = local
    ids = processor.tokenizer("<thinking>One. Two.</thinking><answer>three</answer>")["input_ids"]
    said = lambda input_ids, **_: torch.cat([input_ids, torch.tensor([ids] * len(input_ids))], dim=1)  # noqa: E731
    monkeypatch.setattr(model, "generate", said)
    pairs, output = mixed_pairs(tmp_path), tmp_path / "out.jsonl"
    assert main([str(pairs), "--output", str(output), "--writer", "tiny", "--batch-size", "4"]) == 0
    reply = "<think>One. Two.</think><answer>three</answer>"
    assert all(row["rationale_query"] == row["rationale_positive"] == reply for row in read(output))


def test_a_reply_does_not_depend_on_its_batch(local, tmp_path, monkeypatch):
    found = []
    take = LocalWriter._generate
    monkeypatch.setattr(LocalWriter, "_generate", lambda self, batch: [found.append(r) or r for r in take(self, batch)])
    pairs = mixed_pairs(tmp_path)
    for size in ("1", "4"):
        main(
            [
                str(pairs),
                "--output",
                str(tmp_path / "o.jsonl"),
                "--writer",
                "t",
                "--batch-size",
                size,
                "--max-tokens",
                "5",
            ]
        )
    assert found[:6] == found[6:]


def test_a_picture_that_cannot_be_read_costs_its_side_only(local, tmp_path):
    pairs, output = mixed_pairs(tmp_path), tmp_path / "out.jsonl"
    (tmp_path / "0.png").write_bytes(b"no picture")
    assert main([str(pairs), "--output", str(output), "--writer", "tiny", "--max-tokens", "2"]) == 1
    reasons = [each["reason"] for each in read(tmp_path / "out.jsonl.failures.jsonl")]
    assert len([reason for reason in reasons if "0.png" in reason]) == 2


def test_the_example_of_an_own_writer_gives_back_what_the_world_knows(tmp_path, monkeypatch, capsys):
    write_training(tmp_path / "train", 12, 0, ["image-chain", "text-chain"], progress=False, hops=[4])
    monkeypatch.setattr(sys, "argv", ["rationales.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "rationales.py"))
    assert "12 pairs" in capsys.readouterr().out
    facts, plain, written = (
        [read_pair(row, root) for row in load_rows([str(tmp_path / name)])]
        for name, root in (("train/pairs.jsonl", tmp_path / "train" / "media"), ("plain.jsonl", tmp_path), ("with_rationales.jsonl", tmp_path))
    )  # fmt: skip
    assert [pair.query.content() for pair in plain] == [pair.query.content() for pair in facts]
    assert not any(pair.query.rationale or pair.target.rationale for pair in plain)
    for fact, pair in zip(facts, written, strict=True):
        assert (pair.query.rationale, pair.query.answer) == (fact.query.rationale.strip(), fact.query.answer)
        assert (pair.target.rationale, pair.target.answer) == (fact.target.rationale.strip(), fact.target.answer)
