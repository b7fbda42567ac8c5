"""The audit: interventions are exact, ranks are trec_eval's, every measure reacts to what it is said to measure."""

import json
import runpy
import sys

import numpy as np
import pytest
import pytrec_eval
import torch
from datasets import Dataset, Features, Image, Value
from torch.nn.functional import normalize

from inputs import noise_image
from plume.cache_plume import CachedContext
from plume.evaluation.__main__ import main
from plume.evaluation.audit import audit
from plume.evaluation.audit.data import gather, load_task
from plume.evaluation.audit.intervene import (
    REPLACEMENTS,
    derangement,
    first,
    mean,
    noise,
    recording,
    replacing,
    shuffled,
)
from plume.evaluation.audit.measure import measure
from plume.evaluation.audit.passes import Reader
from plume.evaluation.audit.ranking import rank
from plume.evaluation.audit.report import write_report
from plume.evaluation.audit.routing import expert_use, modality_of, pool
from plume.evaluation.audit.summary import by_kind, mean_cost
from plume.evaluation.embedders import ModelEmbedder, prepare
from plume.evaluation.runner import evaluate
from plume.evaluation.table import read_table

INPUTS = [
    {"text": "a red bus at a stop"},
    {"image": noise_image(1), "text": "two dogs"},
    {"video": [noise_image(2), noise_image(3)]},
    {"text": "the total of the second row"},
]
STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two tiny tasks in the schemas of MMEB-v2: image classification (a control) and pages (two hops)."""
    root = tmp_path_factory.mktemp("world")
    labels = ["a red bus", "two dogs", "a boat", "a mountain", "a page"]
    (root / "images").mkdir()
    for seed in range(5):
        noise_image(seed).save(root / "images" / f"{seed}.png")
    rows = [
        {
            "qry_inst": "<|image_1|> Represent the given image for classification",
            "qry_text": "",
            "qry_img_path": f"{seed}.png",
            "tgt_inst": [],
            "tgt_text": labels[seed:] + labels[:seed],
            "tgt_img_path": [""] * 5,
        }
        for seed in range(5)
    ]
    save(root / "org" / "images", {"rows": Dataset.from_list(rows)})
    pages = {"corpus-id": [f"p{n}" for n in range(6)], "image": [noise_image(50 + n) for n in range(6)]}
    features = Features({"corpus-id": Value("string"), "image": Image()})
    names = [f"q{n}" for n in range(4)]
    save(
        root / "org" / "pages",
        {
            "queries": Dataset.from_dict({"query-id": names, "query": [f"row {n} of the table" for n in range(4)]}),
            "corpus": Dataset.from_dict(pages, features=features),
            "qrels": Dataset.from_dict(
                {"query-id": [*names, "q0"], "corpus-id": ["p0", "p1", "p2", "p3", "p4"], "score": [2, 1, 1, 1, 1]}
            ),
        },
    )
    rows = [
        row("colours", "I-CLS", "image", "images", "image_cls", "local", "hit@1", "image+text", "text", control=True),
        row("tables", "VDRv1", "visdoc", "pages", "beir", "global", "ndcg_linear@5", "text", "image", hops=2),
    ]
    rows[1] |= {"control": False}
    table = root / "tasks.json"
    table.write_text(json.dumps({"meta": {"benchmark": "toy", "version": "1"}, "tasks": rows}))
    return root


def row(name, group, modality, repo, parser, kind, metric, query, candidate, **extras):
    return {
        "id": name,
        "group": group,
        "modality": modality,
        "dataset": {"repo": f"org/{repo}", "config": "rows" if kind == "local" else None, "split": "test"},
        "parser": parser,
        "media": "images",
        "query": {"modality": query, "instruction": ""},
        "candidate": {"modality": candidate, "instruction": ""},
        "pool": kind,
        "metric": metric,
        **extras,
    }


def save(folder, configs):
    lines = ["---", "configs:"]
    for name, dataset in configs.items():
        (folder / name).mkdir(parents=True)
        dataset.to_parquet(folder / name / "test.parquet")
        lines += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}/test.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def rows_of(world):
    return read_table(world / "tasks.json").rows


def run(model, processor, inputs=INPUTS, steps=STEPS):
    with torch.no_grad():
        return model(**prepare(model, processor, inputs), num_latent_steps=steps)


def record(model, processor, inputs=INPUTS):
    with recording(model) as refined:
        output = run(model, processor, inputs)
    return torch.stack(refined, dim=1), output


def replay(model, processor, refined, inputs=INPUTS):
    with replacing(model, refined):
        return run(model, processor, inputs)


# Interventions


def test_recorded_states_are_the_transitions_of_the_reported_latents(model, processor):
    refined, output = record(model, processor)
    anchors = prepare(model, processor, INPUTS)
    assert refined.shape == output.latent_states.shape == (len(INPUTS), STEPS, 32)
    with torch.no_grad():  # z~(k) from z(k), by hand; the anchor needs the prefix states
        context = model.read_prefix(anchors["input_ids"], anchors["attention_mask"], model.media_of(anchors), 0)
        at = (anchors["input_ids"] == model.config.anchor_token_id).long().argmax(dim=1)
        anchor = context.hidden[torch.arange(len(INPUTS)), at]
        expected, _ = model.latent_transition(output.latent_states[:, 0], 2, anchor)
    assert (refined[:, 1] - expected).abs().max() <= 1e-5


def test_replacing_every_state_by_itself_changes_nothing(model, processor):
    refined, output = record(model, processor)
    again = replay(model, processor, refined)
    identity = replay(model, processor, refined[torch.arange(len(INPUTS))])
    for other in (again, identity):
        assert torch.equal(other.embeddings, output.embeddings)
        assert torch.equal(other.latent_states, output.latent_states)
        assert torch.equal(other.router_probs, output.router_probs)


def test_what_is_fed_is_what_was_given_at_every_step(model, processor, monkeypatch):
    refined, _ = record(model, processor)
    given = noise(refined, torch.Generator().manual_seed(1))
    seen, extend = [], CachedContext.extend
    monkeypatch.setattr(
        CachedContext, "extend", lambda self, inputs, keep=None: (seen.append(inputs), extend(self, inputs, keep))[1]
    )
    replay(model, processor, given)
    fed = torch.stack([inputs[:, 0] for inputs in seen[1:]], dim=1)  # after the prefix pass
    assert torch.equal(fed, given)


def test_shuffling_feeds_another_inputs_trace_and_moves_the_vectors(model, processor):
    refined, output = record(model, processor)
    generator = torch.Generator().manual_seed(0)
    order = derangement(len(INPUTS), torch.Generator().manual_seed(0))
    moved = replay(model, processor, shuffled(refined, generator))
    assert torch.equal(shuffled(refined, torch.Generator().manual_seed(0)), refined[order])
    assert ((moved.embeddings - output.embeddings).abs().amax(dim=1) > 1e-3).all()
    # One row by hand: its prefix with the donor's trace.
    alone = replay(model, processor, refined[order[:1]], INPUTS[:1])
    assert (alone.embeddings[0] - moved.embeddings[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [2, 3, 17])
def test_a_derangement_moves_everything_and_loses_nothing(size):
    for seed in range(20):
        order = derangement(size, torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(size))
        assert (order != torch.arange(size)).all()


def test_noise_has_the_norms_and_none_of_the_directions(model, processor):
    refined, output = record(model, processor)
    drawn = noise(refined, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.norm(dim=-1), refined.norm(dim=-1), rtol=1e-5)
    assert (normalize(drawn, dim=-1) * normalize(refined, dim=-1)).sum(dim=-1).abs().max() < 0.7
    assert not torch.equal(drawn, noise(refined, torch.Generator().manual_seed(1)))
    assert (replay(model, processor, drawn).embeddings - output.embeddings).abs().max() > 1e-3


def test_first_and_mean_keep_what_they_say(model, processor):
    refined, output = record(model, processor)
    assert all(torch.equal(first(refined)[:, step], refined[:, 0]) for step in range(STEPS))
    assert torch.allclose(mean(refined)[2], refined.mean(dim=0))
    alike = refined[:1].expand(len(INPUTS), -1, -1)
    assert torch.allclose(mean(alike), alike, atol=1e-6)
    one_step = run(model, processor, steps=1)
    with replacing(model, first(refined)):
        assert torch.equal(run(model, processor, steps=1).embeddings, one_step.embeddings)
    assert (replay(model, processor, first(refined)).embeddings - output.embeddings).abs().max() > 1e-3


def test_hooks_are_gone_after_use_and_after_an_error(model, processor):
    refined, output = record(model, processor)
    with pytest.raises(AssertionError, match="one trace per row"), replacing(model, refined[:2]):
        run(model, processor)
    with pytest.raises(RuntimeError), recording(model):
        raise RuntimeError
    assert not model.latent_transition._forward_hooks
    assert torch.equal(run(model, processor).embeddings, output.embeddings)


# Ranks


def test_ranks_and_ndcg_equal_trec_eval_on_random_cases():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        queries = normalize(torch.randn(4, 8, generator=generator), dim=-1)
        documents = normalize(torch.randn(12, 8, generator=generator), dim=-1)
        pools = torch.rand(4, 12, generator=generator) < 0.7
        grades = torch.randint(1, 4, (4, 12), generator=generator) * (torch.rand(4, 12, generator=generator) < 0.3)
        grades[:, 0], pools[:, 0] = 2, True
        ranking = rank(queries, documents, grades.float(), pools)
        scores = queries @ documents.T
        qrels = {str(q): {str(d): int(g) for d, g in enumerate(row) if g} for q, row in enumerate(grades)}
        runs = {str(q): {str(d): float(scores[q, d]) for d in range(12) if pools[q, d]} for q in range(4)}
        expected = pytrec_eval.RelevanceEvaluator(qrels, {"success_1", "ndcg_cut_5", "recip_rank"}).evaluate(runs)
        for q in range(4):
            assert ranking.hit[q] == expected[str(q)]["success_1"]
            assert 1 / ranking.rank[q] == pytest.approx(expected[str(q)]["recip_rank"])
            assert ranking.ndcg[q] == pytest.approx(expected[str(q)]["ndcg_cut_5"], abs=1e-5)


def test_a_constant_embedder_scores_nothing():
    alike = torch.ones(3, 4)
    ranking = rank(alike, torch.ones(6, 4), torch.eye(3, 6), torch.ones(3, 6, dtype=torch.bool))
    assert ranking.rank.tolist() == [6, 6, 6]
    assert ranking.hit.sum() == ranking.ndcg.sum() == 0


# Routing


def test_expert_use_counts_the_selected_and_weights_by_inputs():
    probs = torch.tensor([[[0.4, 0.3, 0.2, 0.1]], [[0.1, 0.2, 0.3, 0.4]], [[0.4, 0.1, 0.3, 0.2]]])
    text, image = expert_use(probs, 2, ["T", "I", "T"])
    assert (text["modality"], text["n"], text["selected"]) == ("T", 2, [[1.0, 0.5, 0.5, 0.0]])
    assert image["selected"] == [[0.0, 0.0, 1.0, 1.0]]
    assert pool([text, image])[0].tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3])
    assert pool([text, image], "mass")[0].tolist() == pytest.approx([0.3, 0.2, 0.8 / 3, 0.7 / 3])


def test_modalities_are_those_of_the_paper():
    kinds = {("text",): "T", ("image",): "I", ("video",): "V", ("text", "image"): "TI", ("video", "text"): "TV"}
    assert {modality_of(kind, False) for kind in kinds} == set(kinds.values())
    assert modality_of(("image",), True) == "D"


# The whole audit


def test_a_task_is_read_as_the_evaluation_reads_it(world):
    pictures, pages = (load_task(row, world) for row in rows_of(world))
    assert (pictures.control, pages.control, pages.hops, pages.is_visdoc) == (True, False, 2, True)
    assert pictures.pool.all()
    assert pictures.pool.shape == pictures.grades.shape == (5, 5)
    assert pages.grades.sum(dim=1).tolist() == [3, 1, 1, 1]
    drawn = load_task(rows_of(world)[0], world, max_queries=3, seed=1)
    assert drawn.pool.shape == (3, 5)
    with pytest.raises(ValueError, match="takes two"):
        load_task(rows_of(world)[0], world, max_queries=1)


def test_only_documents_that_compete_are_read(world):
    dataset = Dataset.from_dict({"id": ["a", "b", "c"], "text": ["x", "y", "z"]})
    split = {
        "queries": Dataset.from_dict({"id": ["q", "unjudged", "r"], "text": ["1", "2", "3"]}),
        "corpus": dataset,
        "relevant_docs": {"q": {"b": 1}, "r": {"c": 1}},
        "top_ranked": {"q": ["b", "c"], "unjudged": ["a"], "r": ["c"]},
    }
    task = gather(rows_of(world)[0], split, None, 0)
    assert task.queries["text"] == ["1", "3"], "as in mteb, queries without relevant documents are not asked"
    assert task.documents["id"] == ["b", "c"]
    assert task.pool.tolist() == [[True, True], [False, True]]
    split["relevant_docs"]["r"] = {"a": 1}
    with pytest.raises(ValueError, match="without a relevant document"):
        gather(rows_of(world)[0], split, None, 0)


def test_every_number_of_a_task_follows_from_separate_runs_of_the_model(model, processor, world):
    task = load_task(rows_of(world)[1], world)
    result = measure(Reader(model, processor, STEPS, batch_size=3), task, sweep=(0, 2, 5), seed=0)
    queries = [{"text": text} for text in task.queries["text"]]
    pages = [{"image": image} for image in task.documents["image"]]
    at = {k: (run(model, processor, queries, k), run(model, processor, pages, k)) for k in (0, 1, 2, 3, 5)}

    def hit(query_steps, page_steps):
        vectors = at[query_steps][0].embeddings, at[page_steps][1].embeddings
        return rank(*vectors, task.grades, task.pool).hit.mean().item()

    assert [(row["num_latent_steps"], row["hit_at_1"]) for row in result["sweep"]] == [
        (k, hit(k, k)) for k in (0, 2, 3, 5)
    ]
    assert [row["hit_at_1"] for row in result["trajectory"]] == [hit(k, STEPS) for k in range(STEPS + 1)]
    positives = at[STEPS][1].embeddings[task.best]
    for row in result["trajectory"]:
        cosine = (at[row["step"]][0].embeddings * positives).sum(dim=-1)
        assert (row["cosine"], row["cosine_std"]) == pytest.approx(
            (cosine.mean().item(), cosine.std().item()), abs=1e-5
        )
    states = normalize(at[STEPS][0].latent_states, dim=-1)
    own = (states * positives.unsqueeze(1)).sum(dim=-1).mean(dim=0)
    assert [row["state_cosine"] for row in result["trajectory"][1:]] == pytest.approx(own.tolist(), abs=1e-5)
    assert result["interventions"]["drop"]["hit_at_1"] == hit(0, STEPS)
    assert result["interventions"]["as is"]["cost"] == result["interventions"]["as is"]["cost_error"] == 0
    refined, undisturbed = record(model, processor, queries)
    generator = torch.Generator().manual_seed(0)
    for name, replace in REPLACEMENTS.items():
        vectors = replay(model, processor, replace(refined, generator), queries).embeddings
        row, pages = result["interventions"][name], at[STEPS][1].embeddings
        hits = rank(vectors, pages, task.grades, task.pool).hit
        lost = rank(undisturbed.embeddings, pages, task.grades, task.pool).hit - hits
        assert row["hit_at_1"] == hits.mean()
        assert (row["cost"], row["cost_error"]) == pytest.approx((lost.mean().item(), lost.std().item() / 4**0.5))
        cosine = (vectors * undisturbed.embeddings).sum(dim=-1)
        assert row["moved"] == pytest.approx(1 - cosine.mean().item(), abs=1e-5)
        assert row["moved"] > 1e-5
    alike = states[:, -1] @ states[:, -1].T
    assert result["collapse"]["input_cosine"][-1] == pytest.approx((alike.sum().item() - 4) / 12, abs=1e-5)
    used = result["experts"]["queries"]
    assert [row["modality"] for row in used] == ["T"]
    assert np.sum(used[0]["selected"], axis=1) == pytest.approx([2.0] * STEPS)
    assert [row["modality"] for row in result["experts"]["documents"]] == ["D"]


def test_the_whole_curve_over_k_takes_one_rollout(model, processor, world):
    task = load_task(rows_of(world)[0], world)
    steps = []
    model.latent_transition.register_forward_hook(lambda *_: steps.append(1))
    reading = Reader(model, processor, STEPS, batch_size=5).read(task.queries, range(6), keep_states=True)
    assert len(steps) == 5
    assert list(reading.embeddings) == [0, 1, 2, 3, 4, 5]
    assert reading.probs.shape[1] == reading.refined.shape[1] == reading.latents.shape[1] == STEPS


def plant(model, trace):
    """Make the queries of a batch of that many rows think ``trace`` ``(B, K, D)``, whatever they are."""

    def think(module, args, output):
        refined, probs = output
        return (trace[:, args[1] - 1].to(refined), probs) if len(refined) == len(trace) else output

    return model.latent_transition.register_forward_hook(think)


def test_steps_that_hold_nothing_cost_nothing_to_exchange(model, processor, world):
    """Negative control: every query thinks the same, so only taking the steps away can matter."""
    task = load_task(rows_of(world)[1], world)
    plant(model, torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)).expand(4, STEPS, -1))
    rows = measure(Reader(model, processor, STEPS, batch_size=6), task, (), 0)["interventions"]
    for name in ("shuffle", "first", "mean"):
        assert (rows[name]["cost"], rows[name]["cost_error"]) == (0, 0)
        assert rows[name]["moved"] == pytest.approx(0, abs=1e-6)
    assert min(rows[name]["moved"] for name in ("drop", "noise")) > 1e-4


def test_steps_that_hold_everything_cost_everything_to_exchange(model, processor, world):
    """Positive control: each query is given thoughts that lead to its own page and to no other."""
    task = load_task(rows_of(world)[1], world)
    pages = run(model, processor, [{"image": image} for image in task.documents["image"]]).embeddings
    prepared = prepare(model, processor, [{"text": text} for text in task.queries["text"]])
    thoughts = torch.zeros(4, STEPS, 32, requires_grad=True)
    optimizer = torch.optim.Adam([thoughts], lr=0.1)
    model.requires_grad_(False)
    for _ in range(80):
        with replacing(model, thoughts):
            vectors = model(**prepared, num_latent_steps=STEPS).embeddings
        loss = torch.nn.functional.cross_entropy(20 * vectors @ pages.T, task.best)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plant(model, thoughts.detach())
    rows = measure(Reader(model, processor, STEPS, batch_size=6), task, (), 0)["interventions"]
    assert rows["as is"]["hit_at_1"] == 1
    assert rows["shuffle"]["cost"] >= 0.75
    assert rows["drop"]["cost"] > 0
    assert rows["mean"]["cost"] > 0


def test_undisturbed_scores_are_those_of_the_evaluation(model, processor, world):
    embedder = ModelEmbedder(model, processor)
    for row, scored in zip(rows_of(world), evaluate(embedder, rows_of(world), world), strict=True):
        result = measure(Reader(model, processor, STEPS, batch_size=4), load_task(row, world), (), 0)
        ours = result["interventions"]["as is"]
        assert scored["score"] == pytest.approx(ours["hit_at_1" if row.metric == "hit@1" else "ndcg_at_5"], abs=1e-4)


def test_words_are_what_the_head_says(model, processor, world):
    task = load_task(rows_of(world)[1], world)
    words = measure(Reader(model, processor, STEPS, batch_size=4), task, sweep=(), seed=0)["words"]
    latents = run(model, processor, [{"text": text} for text in task.queries["text"]]).latent_states
    likeliest = model.lm_head(latents).argmax(dim=-1)
    assert words["examples"][0][1][0] == processor.tokenizer.decode([likeliest[0, 1].item()])
    for step, common in enumerate(words["steps"]):
        assert common[0][1] == likeliest[:, step].bincount().max() / 4


def test_costs_are_paired_means_with_their_error():
    results = [
        {"control": flag, "interventions": {"drop": {"cost": cost, "cost_error": error}}}
        for flag, cost, error in ((False, 0.4, 0.03), (False, 0.2, 0.04), (True, 0.0, 0.01))
    ]
    kinds = by_kind(results)
    assert {kind: len(members) for kind, members in kinds.items()} == {"multi-hop tasks": 2, "control tasks": 1}
    assert mean_cost(kinds["multi-hop tasks"], "drop") == pytest.approx((0.3, 0.025))


@pytest.mark.slow
def test_the_command_writes_page_pictures_and_numbers_and_goes_on_where_it_stopped(checkpoint, world, tmp_path, capsys):
    arguments = ["audit", "--model", str(checkpoint), "--table", str(world / "tasks.json"), "--data-root", str(world)]
    arguments += ["--sweep", "0", "2", "--out", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 0
    assert "dropping the latents costs" in capsys.readouterr().out
    page = (tmp_path / "audit.md").read_text()
    report = json.loads((tmp_path / "audit.json").read_text())
    assert [task["task"] for task in report["tasks"]] == ["colours", "tables"]
    assert report["condition"]["latent_steps"] == STEPS
    for picture in ("interventions", "sweep", "trajectory", "experts"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000
        assert f"({picture}.png)" in page
    assert "colours (control)" in page

    kept = tmp_path / "tasks" / "colours.json"
    changed = kept.read_text().replace('"group": "I-CLS"', '"group": "kept"')
    kept.write_text(changed)
    (tmp_path / "tasks" / "tables.json").unlink()
    main(arguments)
    again = json.loads((tmp_path / "audit.json").read_text())["tasks"]
    assert again[0]["group"] == "kept", "a finished task is not measured again"
    assert again[1] == report["tasks"][1], "and a missing one comes out the same"
    with pytest.raises(ValueError, match=r"another condition \(seed: 0 there, 1 here\)"):
        main([*arguments, "--seed", "1"])


def test_module_and_room_offer_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["audit", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("plume.evaluation.audit", run_name="__main__")
    with pytest.raises(SystemExit, match="0"):
        main(["audit", "--help"])
    assert capsys.readouterr().out.count("--max-queries") >= 2


def test_mistakes_are_named(model, processor, world, tmp_path):
    rows = rows_of(world)
    with pytest.raises(ValueError, match="at K = 0 there are none"):
        audit(ModelEmbedder(model, processor, 0), rows, world, tmp_path)
    with pytest.raises(ValueError, match=r"outside 0\.\.8"):
        audit(ModelEmbedder(model, processor), rows, world, tmp_path, sweep=(9,))


def test_a_page_without_experts_or_controls_says_so(model, processor, world):
    result = measure(Reader(model, processor, STEPS, batch_size=4), load_task(rows_of(world)[1], world), (), 0)
    result["experts"], result["control"] = {"queries": [], "documents": []}, None
    page = write_report({}, [result], {"interventions": "a", "sweep": "b", "trajectory": "c"})
    assert "nothing is routed" in page
    assert "On 1 task," in page
