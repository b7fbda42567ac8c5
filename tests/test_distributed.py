"""The corpus job: killed and started again, every document exactly once, the vectors of a quiet run."""

import threading

import numpy as np
import pytest

for module in ("ray", "pyarrow", "pypdfium2"):
    pytest.importorskip(module, reason="the extra `corpus` is not installed: pip install '.[apps]'")

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

from inputs import MEDIA, noise_image
from plume.apps.corpus.chunks import embed_chunk, unfinished
from plume.apps.corpus.job import show_readers
from plume.apps.corpus.one_machine import run_processes
from plume.apps.corpus.plan import make_plan
from plume.apps.shared.encoder import Encoder
from plume.apps.shared.lock import locked
from servers import kill_app_when, run_app

COUNT = 60


@pytest.fixture(scope="module")
def encoder(checkpoint) -> Encoder:
    return Encoder(str(checkpoint), "cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(COUNT):
        if number % 2:
            noise_image(number, 56 + 28 * (number % 4)).save(folder / f"{number:03d}.png")
        else:
            (folder / f"{number:03d}.txt").write_text(f"bus number {number} " * (1 + number % 5))
    return folder


def results(job) -> dict[str, dict]:
    rows = ds.dataset(job / "vectors", format="parquet").to_table().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows), "a document was written twice"
    return {row["id"]: row for row in rows}


def quiet_run(corpus, job, encoder, chunk=4) -> dict[str, dict]:
    """The same job in this process, without Ray and without interruption."""
    make_plan(corpus, job, encoder, chunk)
    for name in unfinished(job):
        embed_chunk(job, name, encoder, encoder.try_encode)
    return results(job)


def largest_difference(ours, theirs) -> float:
    assert ours.keys() == theirs.keys()
    return max(np.abs(np.subtract(ours[id]["vector"], theirs[id]["vector"])).max() for id in ours)


def test_killed_ray_job_resumes_without_loss_or_duplicates(corpus, checkpoint, encoder, tmp_path):
    job = tmp_path / "job"
    arguments = [
        "plume.apps.corpus",
        corpus,
        "--output",
        job,
        "--model",
        checkpoint,
        "--actors",
        "1",
        "--chunk",
        "1",
    ]
    kill_app_when(lambda: len(list(job.glob("vectors/*.parquet"))) >= 3, *arguments)
    done = {path.name for path in job.glob("vectors/*.parquet")}
    assert 3 <= len(done) < COUNT
    before = {name: (job / "vectors" / name).stat().st_mtime_ns for name in done}
    said = run_app(*arguments).stdout
    assert f"{COUNT} of {COUNT} documents embedded" in said
    assert before == {name: (job / "vectors" / name).stat().st_mtime_ns for name in done}, "done work was done again"
    resumed = results(job)
    assert len(resumed) == COUNT
    assert largest_difference(resumed, quiet_run(corpus, tmp_path / "quiet", encoder, 1)) <= 1e-5
    assert not list((job / "writing").iterdir())


def test_the_bar_says_what_is_being_read(corpus, encoder, tmp_path):
    job, told = tmp_path / "job", []
    make_plan(corpus, job, encoder, 4)
    embed_chunk(job, unfinished(job)[0], encoder, encoder.try_encode, told.append)
    assert told == [*(f"reading 00{number}.{'png' if number % 2 else 'txt'}" for number in range(4)), told[-1]]
    assert "embedding 4 documents" in told[-1]
    (job / "writing" / "7.reading").write_text("reading large.pdf")
    ended, shown = threading.Event(), []

    class Bar:
        def set_postfix_str(self, text):
            shown.append(text)
            ended.set()

    show_readers(job / "writing", Bar(), ended, 0.01)
    assert shown == ["reading large.pdf"]
    assert unfinished(job)
    assert not list((job / "writing").iterdir()), "what a killed worker said is no longer true"


def test_a_full_disk_ends_a_job_and_the_next_run_goes_on(corpus, encoder, tmp_path):
    """No file may grow beyond a kilobyte while a chunk is written: a full disk, but for the number of the error."""
    resource = pytest.importorskip("resource", reason="limits of processes are not known here")
    job, (soft, hard) = tmp_path / "job", resource.getrlimit(resource.RLIMIT_FSIZE)
    make_plan(corpus, job, encoder, 30)

    def embed(contents):
        vectors = encoder.try_encode(contents)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        return vectors

    try:
        with pytest.raises(OSError, match="File too large"):
            embed_chunk(job, unfinished(job)[0], encoder, embed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(unfinished(job)) == 2
    assert len(quiet_run(corpus, job, encoder, 30)) == COUNT


def test_a_worker_that_outlives_its_job_changes_nothing(corpus, encoder, tmp_path):
    """The result of a chunk has one name: written twice, it is there once, with the same vectors."""
    rows = quiet_run(corpus, tmp_path / "job", encoder)
    embed_chunk(tmp_path / "job", "000003.parquet", encoder, encoder.try_encode)
    assert largest_difference(results(tmp_path / "job"), rows) == 0


def test_what_a_killed_worker_left_half_written_is_no_result(corpus, encoder, tmp_path):
    job = tmp_path / "job"
    make_plan(corpus, job, encoder, 10)
    unfinished(job)
    (job / "writing" / "1-000000.parquet").write_bytes(b"PAR1 cut off")
    assert len(unfinished(job)) == COUNT / 10
    assert not list((job / "writing").iterdir())


def test_the_index_imports_what_the_job_wrote(corpus, checkpoint, encoder, tmp_path):
    for module in ("lancedb", "av"):
        pytest.importorskip(module, reason="the extra `search` is not installed")
    from plume.apps.search.importing import import_vectors
    from plume.apps.search.indexing import index_folders
    from plume.apps.search.store import Index

    rows = quiet_run(corpus, tmp_path / "job", encoder)
    steps = encoder.model.config.num_latent_steps
    index = Index(tmp_path / "index", encoder.identity, encoder.dimension, steps)
    assert import_vectors(tmp_path / "job", index) == COUNT
    assert import_vectors(tmp_path / "job", index) == COUNT
    assert len(index) == COUNT
    vectors = index.vectors()
    assert max(np.abs(vectors[id] - rows[id]["vector"]).max() for id in rows) == 0
    report = index_folders([corpus], index, encoder)
    assert (report.embedded, report.unchanged) == (0, COUNT)
    other = Index(tmp_path / "other", "another checkpoint", encoder.dimension, steps)
    with pytest.raises(ValueError, match="cannot be compared"):
        import_vectors(tmp_path / "job", other)


def test_a_parquet_corpus_and_documents_that_fail(encoder, tmp_path):
    picture = (MEDIA / "bus.png").read_bytes()
    rows = [
        {"id": "a", "text": "a red bus", "image": None},
        {"id": "b", "text": None, "image": picture},
        {"id": "c", "text": "at a stop", "image": picture},
        {"id": "d", "text": None, "image": b"no picture"},
        {"id": "e", "text": None, "image": None},
    ]
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("image", pa.binary())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "corpus.parquet")
    found = quiet_run(tmp_path / "corpus.parquet", tmp_path / "job", encoder)
    assert {id for id, row in found.items() if row["error"]} == {"d", "e"}
    assert np.abs(found["a"]["vector"] - encoder.encode(["a red bus"])[0]).max() <= 1e-5
    assert len(found["c"]["preview"]) > 100
    pq.write_table(pa.Table.from_pylist([rows[0]] * 2, schema=schema), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="occurs twice"):
        make_plan(tmp_path / "twice.parquet", tmp_path / "other", encoder, 4)


def test_one_machine_goes_on_after_a_document_that_fails(checkpoint, encoder, tmp_path):
    (tmp_path / "corpus").mkdir()
    noise_image(1).save(tmp_path / "corpus" / "a.png")
    Image.new("RGB", (9000, 30)).save(tmp_path / "corpus" / "banner.png")
    (tmp_path / "corpus" / "c.txt").write_text("a red bus")
    make_plan(tmp_path / "corpus", tmp_path / "job", encoder, 4)
    run_processes(tmp_path / "job", encoder, ["cpu"])
    found = {row["path"]: row for row in results(tmp_path / "job").values()}
    assert {path for path, row in found.items() if row["error"]} == {"banner.png"}
    assert "longer than wide" in found["banner.png"]["error"]
    assert np.abs(found["c.txt"]["vector"] - encoder.encode(["a red bus"])[0]).max() <= 1e-5


def test_a_plan_removes_nothing_that_is_not_its_own(corpus, encoder, tmp_path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "notes.md").write_text("mine")
    (tmp_path / "writing").mkdir()
    (tmp_path / "writing" / "chapter.md").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.md, which is no part of a job"):
        make_plan(corpus, tmp_path, encoder, 4)
    (tmp_path / "plan" / "notes.md").rename(tmp_path / "notes.md")
    make_plan(corpus, tmp_path, encoder, 4)
    assert unfinished(tmp_path)
    assert (tmp_path / "writing" / "chapter.md").read_text() == "mine"


def test_a_folder_holds_one_job(corpus, encoder, tmp_path):
    make_plan(corpus, tmp_path / "job", encoder, 10)
    assert make_plan(corpus, tmp_path / "job", encoder, 10) == COUNT
    with pytest.raises(ValueError, match="holds a job whose corpus"):
        make_plan(MEDIA, tmp_path / "job", encoder, 10)


def test_two_runs_of_one_job_are_refused(corpus, checkpoint, tmp_path):
    with locked(tmp_path / "job"):
        refused = run_app("plume.apps.corpus", corpus, "--output", tmp_path / "job", "--model", checkpoint, check=False)
    assert refused.returncode == 1
    assert "Another run" in refused.stderr


def test_sentence_transformers_ends_the_same_job(corpus, checkpoint, encoder, tmp_path):
    job = tmp_path / "job"
    make_plan(corpus, job, encoder, 20)
    embed_chunk(job, unfinished(job)[0], encoder, encoder.try_encode)
    arguments = ["plume.apps.corpus", corpus, "--output", job, "--model", checkpoint, "--processes", "cpu"]
    run_app(*arguments)
    assert largest_difference(results(job), quiet_run(corpus, tmp_path / "quiet", encoder)) <= 1e-5
