"""The objective against closed forms (Eq. 1, 6, 8)."""

import math

import pytest
import torch

from plume.training.losses import (
    Representations,
    Weights,
    balance,
    info_nce,
    place_scores,
    pool_loss,
    ranking_kl,
    suffix_ce,
)


def unit(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


@pytest.mark.parametrize("pool", [1, 2, 7])
def test_equal_vectors_give_log_n(pool):
    same = unit(1).expand(pool, -1)
    assert info_nce(same, same, torch.arange(pool), 0.02).item() == pytest.approx(math.log(pool), abs=1e-5)


def test_a_perfect_match_gives_zero():
    corners = torch.eye(8)
    assert info_nce(corners, corners, torch.arange(8), 0.02).item() == pytest.approx(0, abs=1e-6)


def test_both_directions_count():
    queries, targets = unit(5, seed=1), unit(5, seed=2)
    ids, logits = torch.arange(5), unit(5, seed=1) @ unit(5, seed=2).T / 0.1
    rows = -logits.log_softmax(1).diag().mean()
    columns = -logits.log_softmax(0).diag().mean()
    assert info_nce(queries, targets, ids, 0.1).item() == pytest.approx(((rows + columns) / 2).item(), abs=1e-5)
    assert abs(rows - columns) > 1e-3


def test_duplicates_of_the_positive_are_no_negatives():
    """Two pairs with one target: the pool of each is one item smaller, in both directions."""
    same = unit(1).expand(4, -1)
    assert info_nce(same, same, torch.tensor([1, 2, 3, 3]), 0.02).item() == pytest.approx(
        (2 * math.log(4) + 2 * math.log(3)) / 4, abs=1e-5
    )
    assert info_nce(same, same, torch.tensor([5, 5, 5, 5]), 0.02).item() == pytest.approx(0, abs=1e-6)


def test_hard_negatives_compete_for_queries_only():
    same = unit(1).expand(6, -1)
    assert info_nce(same[:4], same, torch.arange(6), 0.02).item() == pytest.approx(
        (math.log(6) + math.log(4)) / 2, abs=1e-5
    )


def test_similarities_are_fp32():
    queries, targets = unit(4, seed=1).bfloat16(), unit(4, seed=2).bfloat16()
    exact = info_nce(queries.float(), targets.float(), torch.arange(4), 0.02)
    assert info_nce(queries, targets, torch.arange(4), 0.02).item() == pytest.approx(exact.item(), abs=1e-6)


def test_uniform_routing_is_balanced_and_one_expert_is_not():
    assert balance(torch.full((5, 4), 0.25)).item() == 0
    assert balance(torch.eye(4)).item() == 0  # each row takes one expert, the batch takes all alike
    one = torch.zeros(5, 4)
    one[:, 0] = 1
    assert balance(one).item() == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)


def test_without_latent_steps_there_is_no_balance_term():
    rows = Representations(unit(3), unit(3), torch.empty(3, 0))
    _, parts = pool_loss(rows, rows, torch.arange(3), Weights())
    assert set(parts) == {"embedding", "anchor"}


def test_the_objective_is_the_weighted_sum():
    queries = Representations(unit(3, seed=1), unit(3, seed=2), torch.rand(3, 4).softmax(-1))
    targets = Representations(unit(3, seed=3), unit(3, seed=4), torch.rand(3, 4).softmax(-1))
    loss, parts = pool_loss(queries, targets, torch.arange(3), Weights(1.0, 0.3, 0.2, 0.7, 0.05))
    expected = 0.3 * parts["embedding"] + 0.2 * parts["anchor"] + 0.7 * parts["balance"]
    assert loss.item() == pytest.approx(expected.item())
    assert parts["embedding"] != parts["anchor"]


def test_a_ranking_like_the_teacher_s_costs_nothing():
    queries, candidates, ids = unit(3, seed=1), unit(5, seed=2), torch.arange(5)
    teacher = queries @ candidates.T / 0.1
    assert ranking_kl(queries, candidates, teacher + 7, ids, 0.1).item() == pytest.approx(0, abs=1e-6)
    assert ranking_kl(queries, candidates, -teacher, ids, 0.1).item() > 1


def test_a_ranking_is_the_divergence_from_the_teacher_to_the_student():
    """Two candidates, both equally similar: KL((3/4, 1/4) || (1/2, 1/2))."""
    same = unit(1).expand(2, -1)
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert ranking_kl(same[:1], same, teacher, torch.arange(2), 0.02).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("left_out", ["not scored", "same item as the positive"])
def test_what_has_no_score_or_is_the_positive_again_is_in_neither_ranking(left_out):
    queries, candidates = unit(2, seed=1), unit(4, seed=2)
    teacher, ids = unit(8, 1, seed=3).view(2, 4) * 3, torch.arange(4)
    expected = ranking_kl(queries, candidates[:3], teacher[:, :3], ids[:3], 0.1)
    if left_out == "not scored":
        teacher[:, 3] = torch.nan
    else:
        teacher, ids = teacher[:1], torch.tensor([0, 1, 2, 0])
        queries, expected = queries[:1], ranking_kl(queries[:1], candidates[:3], teacher[:, :3], ids[:3], 0.1)
    assert ranking_kl(queries, candidates, teacher, ids, 0.1).item() == pytest.approx(expected.item(), abs=1e-6)
    assert expected > 1e-3


def test_a_query_without_a_ranking_does_not_count_and_its_gradient_is_zero():
    queries, candidates, ids = unit(2, seed=1).requires_grad_(), unit(3, seed=2), torch.arange(3)
    teacher = torch.tensor([[1.0, 2.0, 3.0], [torch.nan, 1.0, torch.nan]])
    loss = ranking_kl(queries, candidates, teacher, ids, 0.1)
    assert loss.item() == pytest.approx(ranking_kl(queries[:1], candidates, teacher[:1], ids, 0.1).item())
    (gradient,) = torch.autograd.grad(loss, queries)
    assert gradient[0].abs().max() > 0
    assert gradient[1].tolist() == [0.0] * 16
    nothing = ranking_kl(queries, candidates, torch.full((2, 3), torch.nan), ids, 0.1)
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, queries)[0].abs().max() == 0


def test_scores_of_a_row_stand_at_its_own_positive_and_negatives():
    nan = -1.0
    placed = place_scores(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, torch.nan]])).nan_to_num(nan)
    assert placed.tolist() == [[1.0, nan, 2.0, 3.0, nan, nan], [nan, 4.0, nan, nan, 5.0, nan]]


def representations(seed: int, num_readouts: int) -> Representations:
    readouts = torch.stack([unit(3, seed=seed + place) for place in range(num_readouts)], dim=1)
    return Representations(unit(3, seed=seed), unit(3, seed=seed), torch.rand(3, 4).softmax(-1), readouts)


def test_a_readout_s_queries_meet_the_candidates_of_every_readout():
    queries, targets, ids = representations(10, 2), representations(20, 2), torch.arange(3)
    plain, _ = pool_loss(queries, targets, ids, Weights())
    loss, parts = pool_loss(queries, targets, ids, Weights(), {0: 0.5, 4: 2.0})
    for place, name in enumerate(("readout_0", "readout_4")):
        against = [info_nce(queries.readouts[:, place], targets.readouts[:, other], ids, 0.02) for other in (0, 1)]
        assert parts[name].item() == pytest.approx((sum(against) / 2).item())
    assert loss.item() == pytest.approx((plain + 0.5 * parts["readout_0"] + 2.0 * parts["readout_4"]).item())


def test_prefixes_are_contrasted_at_unit_length():
    queries, targets, ids = representations(10, 1), representations(20, 1), torch.arange(3)
    weights = Weights(embedding=0.7, prefixes=((4, 0.5),))
    loss, parts = pool_loss(queries, targets, ids, weights, {2: 1.0})

    def cut(vectors):
        return torch.nn.functional.normalize(vectors[:, :4], dim=-1)

    prefix = info_nce(cut(queries.embeddings), cut(targets.embeddings), ids, 0.02)
    assert parts["dim_4"].item() == pytest.approx(prefix.item())
    of_readout = info_nce(queries.readouts[:, 0], targets.readouts[:, 0], ids, 0.02)
    of_readout += 0.5 * info_nce(cut(queries.readouts[:, 0]), cut(targets.readouts[:, 0]), ids, 0.02)
    assert parts["readout_2"].item() == pytest.approx(of_readout.item())
    expected = 0.7 * (parts["embedding"] + 0.5 * prefix) + parts["anchor"] + 0.1 * parts["balance"] + of_readout
    assert loss.item() == pytest.approx(expected.item())


def test_cross_entropy_averages_the_scored_tokens_of_each_row():
    log_probs = torch.tensor([[-1.0, -3.0, -9.0], [-2.0, -9.0, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert suffix_ce(log_probs, mask).tolist() == [2.0, 2.0]
