from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layer_mapping

DEPTHS = st.tuples(st.integers(1, 50), st.integers(1, 100)).filter(lambda d: d[0] <= d[1])
SEEDS = st.integers(0, 2**31)
# name → pairs for 3 student layers and 12 teacher layers, where nothing is drawn
PAIRS_OF_12_TO_3 = {
    "forward": [(0, 3), (1, 7), (2, 11)],
    "reverse": [(0, 11), (1, 7), (2, 3)],
    "all_to_one": [(0, 5), (1, 5), (2, 5)],
    "last": [(2, 11)],
    "none": [],
}


@pytest.mark.parametrize(
    ("num_student", "num_teacher", "teacher_layers"),
    [
        (9, 36, [3, 7, 11, 15, 19, 23, 27, 31, 35]),
        (10, 40, [3, 7, 11, 15, 19, 23, 27, 31, 35, 39]),
        (7, 28, [3, 7, 11, 15, 19, 23, 27]),
        (3, 12, [3, 7, 11]),
        (3, 10, [2, 6, 9]),  # 3.33, 6.67, 10
        (4, 10, [2, 4, 7, 9]),  # 2.5 and 7.5 are halves: both go up
        (7, 30, [3, 8, 12, 16, 20, 25, 29]),  # 4.29, 8.57, 12.86, 17.14, 21.43, 25.71, 30
        (1, 5, [4]),
        (1, 1, [0]),
        (5, 5, [0, 1, 2, 3, 4]),
        (4, 5, [0, 2, 3, 4]),  # 1.25, 2.5, 3.75, 5
    ],
)
def test_forward_pairs(num_student, num_teacher, teacher_layers):
    assert layer_mapping.forward(num_student, num_teacher) == list(enumerate(teacher_layers))


@pytest.mark.parametrize("name", PAIRS_OF_12_TO_3)
def test_pairs_of_12_to_3(name):
    assert getattr(layer_mapping, name)(3, 12) == PAIRS_OF_12_TO_3[name]
    assert layer_mapping.resolve(name, 3, 12) == PAIRS_OF_12_TO_3[name]


@pytest.mark.parametrize(
    ("num_teacher", "options", "layer"),
    [(36, {}, 17), (5, {}, 1), (1, {}, 0), (36, {"layer": 20}, 20), (36, {"layer": -1}, 35)],
)
def test_all_to_one_layer(num_teacher, options, layer):
    assert layer_mapping.all_to_one(2, num_teacher, **options) == [(0, layer), (1, layer)]


def test_a_student_may_be_deeper_where_no_spacing_is_needed():
    assert layer_mapping.all_to_one(3, 2) == [(0, 0), (1, 0), (2, 0)]
    assert layer_mapping.last(3, 2) == [(2, 1)]


@given(DEPTHS, st.sampled_from(sorted(layer_mapping.STRATEGIES)), st.integers(0, 5))
def test_every_strategy_stays_in_range(depths, name, epoch):
    num_student, num_teacher = depths
    pairs = layer_mapping.resolve(name, num_student, num_teacher, epoch)
    assert all(0 <= s < num_student and 0 <= t < num_teacher for s, t in pairs)
    students = [s for s, _ in pairs]
    assert students == sorted(set(students))


@given(DEPTHS)
def test_forward_is_even_and_ends_at_the_last_layer(depths):
    num_student, num_teacher = depths
    teachers = [t for _, t in layer_mapping.forward(*depths)]
    assert teachers[-1] == num_teacher - 1
    gaps = {after - before for before, after in zip([-1, *teachers], teachers, strict=False)}
    step = num_teacher / num_student
    assert min(gaps) > step - 1
    assert max(gaps) < step + 1
    assert min(gaps) >= 1


@given(DEPTHS)
def test_reverse_is_forward_read_backwards(depths):
    forward, reverse = layer_mapping.forward(*depths), layer_mapping.reverse(*depths)
    assert [t for _, t in reverse] == [t for _, t in forward][::-1]


@given(DEPTHS, SEEDS)
def test_random_reorders_the_layers_of_forward(depths, seed):
    pairs = layer_mapping.random(*depths, seed=seed)
    assert sorted(t for _, t in pairs) == [t for _, t in layer_mapping.forward(*depths)]
    assert pairs == layer_mapping.random(*depths, seed=seed)


@given(DEPTHS, SEEDS, st.integers(0, 100))
def test_in_order_random_is_sorted_and_repeatable(depths, seed, epoch):
    pairs = layer_mapping.in_order_random(*depths, seed=seed, epoch=epoch)
    teachers = [t for _, t in pairs]
    assert teachers == sorted(set(teachers))
    assert len(teachers) == depths[0]
    assert pairs == layer_mapping.in_order_random(*depths, seed=seed, epoch=epoch)


def test_random_depends_on_the_seed_and_not_on_the_epoch():
    assert len({tuple(layer_mapping.random(9, 36, seed=seed)) for seed in range(20)}) == 20
    spec = partial(layer_mapping.random, seed=3)
    draws = [layer_mapping.resolve(spec, 9, 36, epoch=epoch) for epoch in range(3)]
    assert draws == [layer_mapping.random(9, 36, seed=3)] * 3


def test_in_order_random_draws_anew_each_epoch_and_seed():
    def draw(seed, epoch):
        spec = partial(layer_mapping.in_order_random, seed=seed)
        return tuple(layer_mapping.resolve(spec, 9, 36, epoch=epoch))

    assert len({draw(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25


def test_in_order_random_reaches_every_teacher_layer():
    draws = [layer_mapping.in_order_random(3, 12, epoch=epoch) for epoch in range(100)]
    assert {t for pairs in draws for _, t in pairs} == set(range(12))


def test_an_epoch_bound_by_the_user_stays():
    spec = partial(layer_mapping.in_order_random, epoch=4)
    expected = layer_mapping.in_order_random(9, 36, epoch=4)
    assert layer_mapping.resolve(spec, 9, 36, epoch=0) == expected


def test_draws_do_not_touch_global_random_state():
    import random

    state = random.getstate()
    layer_mapping.random(9, 36)
    layer_mapping.in_order_random(9, 36)
    assert random.getstate() == state


@pytest.mark.parametrize("spec", [[[0, 15], [1, -1], [-1, 25]], ((0, 15), (1, 27), (15, 25))])
def test_explicit_pairs(spec):
    assert layer_mapping.resolve(spec, 16, 28) == [(0, 15), (1, 27), (15, 25)]


def test_explicit_pairs_may_repeat_layers_and_keep_their_order():
    spec = [[1, 5], [0, 5], [1, 3], [1, 5]]
    assert layer_mapping.resolve(spec, 2, 8) == [(1, 5), (0, 5), (1, 3), (1, 5)]


def test_no_pairs_mean_no_matching():
    assert layer_mapping.resolve([], 2, 8) == layer_mapping.none(2, 8) == []


def test_a_strategy_of_ones_own():
    def every_third(num_student, num_teacher):
        return [(j, 3 * j - num_teacher) for j in range(num_student)]

    assert layer_mapping.resolve(every_third, 2, 12, epoch=7) == [(0, 0), (1, 3)]


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(-9, 8), st.integers(-9, 8)), min_size=1),
)
def test_explicit_agrees_with_python_indexing(num_student, num_teacher, pairs):
    students, teachers = list(range(num_student)), list(range(num_teacher))
    try:
        expected = [(students[s], teachers[t]) for s, t in pairs]
    except IndexError:
        with pytest.raises(ValueError, match="out of range"):
            layer_mapping.explicit(num_student, num_teacher, pairs)
    else:
        assert layer_mapping.explicit(num_student, num_teacher, pairs) == expected


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ([16, 3], r"student layer 16 of pair \[16, 3\] .* 16 layers"),
        ([-17, 3], r"student layer -17 of pair \[-17, 3\] .* 16 layers"),
        ([2, 28], r"teacher layer 28 of pair \[2, 28\] .* 28 layers"),
        ([2, -29], r"teacher layer -29 of pair \[2, -29\] .* 28 layers"),
    ],
)
def test_out_of_range_names_pair_and_depth(pair, named):
    with pytest.raises(ValueError, match=named):
        layer_mapping.resolve([[0, 0], pair], 16, 28)


@pytest.mark.parametrize("entry", [3, [1], [1, 2, 3], [0, 1.5], ["0", "1"], [True, 1], "01", None])
def test_an_entry_that_is_no_pair(entry):
    with pytest.raises(ValueError, match="not a pair of integers"):
        layer_mapping.resolve([[0, 0], entry], 16, 28)


@pytest.mark.parametrize("spec", [None, 3, {"forward": 1}])
def test_a_value_that_is_no_mapping(spec):
    with pytest.raises(ValueError, match=r"layer_mapping must be one of forward, reverse.*list"):
        layer_mapping.resolve(spec, 16, 28)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("foward", "forward"), ("revers", "reverse"), ("all-to-one", "all_to_one")],
)
def test_a_misspelt_name_gets_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"'{name}'; did you mean '{nearest}'"):
        layer_mapping.resolve(name, 3, 12)


@pytest.mark.parametrize("name", ["forward", "reverse", "random", "in_order_random"])
def test_a_deeper_student_needs_explicit_pairs(name):
    with pytest.raises(ValueError, match=r"student has 12 layers.*teacher's 3.*list the pairs"):
        layer_mapping.resolve(name, 12, 3)


@pytest.mark.parametrize("name", sorted(layer_mapping.STRATEGIES))
@pytest.mark.parametrize("depths", [(0, 4), (4, 0)])
def test_a_model_without_layers(name, depths):
    with pytest.raises(ValueError, match="at least one layer"):
        layer_mapping.resolve(name, *depths)


def test_all_to_one_out_of_range():
    with pytest.raises(ValueError, match=r"teacher layer 12 .* 12 layers"):
        layer_mapping.all_to_one(3, 12, layer=12)
