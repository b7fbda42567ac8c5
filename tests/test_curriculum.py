"""The curriculum: segments, stages, schedule, order of pairs (paper section 3.6, Table 6)."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plume.training import curriculum as module
from plume.training.curriculum import Curriculum, split_segments
from plume.training.learning_rate import StageLearningRate
from plume.training.sampler import SubBatchSampler

ELT, GEN = 900, 901
RATIONALE = (
    "The query shows a red bus. It stops near 3.5 m of kerb. A man waits. He holds a bag! Is it raining? No rain.\n"
    "The sky is grey. So the scene is urban. Summary: bus stop."
)


def test_docstring_examples():
    assert doctest.testmod(module).failed == 0


@given(st.text(alphabet="aB1 .!?\n\u3002,", max_size=80))
def test_segments_joined_are_the_rationale(text):
    assert "".join(split_segments(text)) == text
    assert all(segment.strip() for segment in split_segments(text)[1:])


def test_sentences_are_the_segments_and_decimals_stay_whole():
    segments = split_segments(RATIONALE)
    assert len(segments) == 9
    assert segments[1] == " It stops near 3.5 m of kerb."
    assert split_segments("\u4e00\u3002\u4e8c\u3002") == ["\u4e00\u3002", "\u4e8c\u3002"]
    assert split_segments("") == []


@given(num_segments=st.integers(0, 12), num_stages=st.integers(1, 8), k=st.integers(0, 16), length=st.integers(0, 4))
def test_stages_replace_the_rationale_from_left_to_right(num_segments, num_stages, k, length):
    """Ever fewer segments stay, ever more latent steps stand for them, the order is kept, the last stage is bare."""
    segments = [[10 * index + token for token in range(length)] for index in range(num_segments)]
    stages = Curriculum(k, (1.0,) * (num_stages + 1)).stages
    suffixes = [stage.rewrite(segments, [800, 801], [ELT, 700, GEN]) for stage in stages]
    assert suffixes[0] == [ELT, *sum(segments, []), 800, 801, GEN]
    assert suffixes[-1] == [ELT, 700, GEN]
    assert [stage.num_latent_steps for stage in stages] == sorted(stage.num_latent_steps for stage in stages)
    assert (stages[0].num_latent_steps, stages[-1].num_latent_steps) == (0, k)
    for stage, suffix in zip(stages[:-1], suffixes[:-1], strict=True):
        kept = sum(segments[stage.num_replaced(num_segments) :], [])
        assert suffix == [ELT, *kept, 800, 801, GEN]
        assert stage.num_replaced(num_segments) >= num_segments * stage.index / num_stages


def test_the_paper_s_stages():
    stages = Curriculum(8).stages
    assert [stage.num_latent_steps for stage in stages] == [0, 2, 4, 6, 8]
    assert [stage.num_replaced(8) for stage in stages] == [0, 2, 4, 6, 8]
    assert [stage.is_final for stage in stages] == [False, False, False, False, True]


def test_latent_steps_are_rounded_to_the_nearest():
    """K = 2 in 4 stages: 0, 0.5, 1, 1.5, 2; a half goes to the even neighbour."""
    assert [stage.num_latent_steps for stage in Curriculum(2).stages] == [0, 0, 1, 2, 2]
    assert [stage.num_latent_steps for stage in Curriculum(5).stages] == [0, 1, 2, 4, 5]


def test_a_step_stands_for_the_same_in_short_and_long_rationales():
    """Two steps a sentence, at most K; the last stage has K however many stages there are."""
    stages = Curriculum(8, (1.0,) * 6, per_segment=2).stages
    assert [stage.num_latent_steps for stage in stages] == [0, 2, 4, 6, 8, 8]
    assert [[stage.num_replaced(count) for stage in stages[:5]] for count in (1, 4, 6)] == [
        [0, 1, 1, 1, 1],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert [stage.num_latent_steps for stage in Curriculum(8, (1.0,) * 3, per_segment=2).stages] == [0, 2, 8]


def test_no_latent_steps_for_a_sentence_are_refused():
    with pytest.raises(ValueError, match="steps_per_sentence must be at least 1, got 0"):
        Curriculum(8, per_segment=0)


def test_the_paper_s_schedule_as_shares_of_the_run():
    """3 epochs, 1 shared by three stages, 1: of 45 steps 27, 3, 3, 3, 9."""
    curriculum = Curriculum(8)
    assert curriculum.boundaries(45) == [27, 30, 33, 36, 45]
    scheduled = [curriculum.stage_at(step, 45).index for step in range(45)]
    assert [scheduled.count(index) for index in range(5)] == [27, 3, 3, 3, 9]
    assert scheduled == sorted(scheduled)


@pytest.mark.parametrize("num_stages", [2, 4, 6, 8])
def test_any_number_of_stages(num_stages):
    curriculum = Curriculum(8, (3.0, *([1 / (num_stages - 1)] * (num_stages - 1)), 1.0))
    seen = [curriculum.stage_at(step, 100).index for step in range(100)]
    assert sorted(set(seen)) == list(range(num_stages + 1))


def test_an_abrupt_switch_is_a_schedule_with_zeros():
    curriculum = Curriculum(8, (3.0, 0.0, 0.0, 0.0, 2.0))
    assert {curriculum.stage_at(step, 50).index for step in range(50)} == {0, 4}


def test_rehearsals_are_deterministic_and_of_earlier_stages_only():
    mixed, plain = Curriculum(8, mixing=0.5), Curriculum(8)
    steps = [mixed.stage_at(step, 300).index for step in range(300)]
    assert steps == [mixed.stage_at(step, 300).index for step in range(300)]
    assert all(step <= plain.stage_at(place, 300).index for place, step in enumerate(steps))
    final = [step for place, step in enumerate(steps) if plain.stage_at(place, 300).index == 4]
    assert 0.3 < sum(step < 4 for step in final) / len(final) < 0.7


@pytest.mark.parametrize("weights", [(), (1.0,), (0.0, 0.0), (1.0, -1.0)])
def test_impossible_schedules_are_refused(weights):
    with pytest.raises(ValueError, match="no schedule"):
        Curriculum(8, weights)


@pytest.mark.parametrize(("name", "field"), [("stage_mixing", "mixing"), ("latent_dropout", "dropout")])
@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_impossible_shares_are_refused(name, field, share):
    with pytest.raises(ValueError, match=name):
        Curriculum(8, **{field: share})


def test_latent_steps_are_left_out_of_the_final_stage_only():
    curriculum = Curriculum(8, dropout=0.3)
    stages = [curriculum.stage_at(step, 500) for step in range(500)]
    assert stages == [curriculum.stage_at(step, 500) for step in range(500)]
    assert all(stage == curriculum.stages[stage.index] for stage in stages if not stage.is_final)
    final = [stage.num_latent_steps for stage in stages if stage.is_final]
    assert set(final) == {0, 8}
    assert 0.1 < final.count(0) / len(final) < 0.5


def test_the_learning_rate_is_scaled_per_stage_and_rises_anew():
    """Stages of 4 steps each: factors 1 and 0.5, two steps of warm-up after each change."""
    curriculum, shape = Curriculum(8, (1.0, 1.0)), StageLearningRate([1.0, 0.5], 2)
    assert [shape.factor(step, curriculum, 8) for step in range(8)] == [1.0, 1.0, 1.0, 1.0, 0.25, 0.5, 0.5, 0.5]
    assert {StageLearningRate().factor(step, curriculum, 8) for step in range(8)} == {1.0}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((4.0, 1.0), [0, 1.25, 2.5, 3.75, 5, 6.25, 7.5, 8.75, 0, 5]),  # 8 steps, then 2
        ((0.0, 1.0), list(range(10))),  # there is no other stage
        ((1.0, 0.0), list(range(10))),
    ],
)
def test_the_last_stage_runs_through_the_schedule_anew(weights, expected):
    curriculum = Curriculum(8, weights)
    own, tail = StageLearningRate(final_schedule=True), StageLearningRate()
    assert [own.place(step, curriculum, 10) for step in range(10)] == pytest.approx(expected)
    assert [tail.place(step, curriculum, 10) for step in range(10)] == list(range(10))


NAMES = ["a"] * 10 + ["b"] * 7 + ["c"] * 3


@given(size=st.integers(1, 12), epoch=st.integers(0, 3))
def test_every_pair_is_seen_once_in_runs_of_one_dataset(size, epoch):
    sampler = SubBatchSampler(NAMES, size, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(20)) == list(range(len(sampler)))
    whole = sum(NAMES.count(name) // size * size for name in "abc")
    for start in range(0, whole, size):
        assert len({NAMES[index] for index in order[start : start + size]}) == 1
    assert order == list(sampler)


def test_epochs_and_seeds_differ():
    first, second = SubBatchSampler(NAMES, 4, seed=0), SubBatchSampler(NAMES, 4, seed=1)
    assert list(first) != list(second)
    second = SubBatchSampler(NAMES, 4, seed=0)
    second.set_epoch(1)
    assert list(first) != list(second)
