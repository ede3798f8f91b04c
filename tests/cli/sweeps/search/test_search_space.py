"""What Hydra's words for a search mean to Optuna."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_peft.cli.sweeps.search.space import grid_of, overrides_of, proposals_of, space_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2", CategoricalDistribution([1, 2])),
        ("choice(1,2.5,x)", CategoricalDistribution([1, 2.5, "x"])),
        ("choice(true,false)", CategoricalDistribution([True, False])),
        ("choice('x y',z)", CategoricalDistribution(["x y", "z"])),
        ("choice({b:1},[1,2])", CategoricalDistribution(["{b:1}", "[1,2]"])),
        ("sort(3,1,2)", CategoricalDistribution([1, 2, 3])),
        ("tag(t,choice(1,2))", CategoricalDistribution([1, 2])),
        ("range(1,5)", IntDistribution(1, 4)),
        ("range(3)", IntDistribution(0, 2)),
        ("range(1,10,step=4)", IntDistribution(1, 9, step=4)),
        ("range(10,1,step=-3)", IntDistribution(4, 10, step=3)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("float(range(1,5))", FloatDistribution(1.0, 4.0, step=1.0)),
        ("interval(1,5)", FloatDistribution(1.0, 5.0)),
        ("interval(0.1,5)", FloatDistribution(0.1, 5.0)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("tag(log,int(interval(1,50)))", IntDistribution(1, 50, log=True)),
    ],
)
def test_words_of_hydra_are_distributions_of_optuna(text, expected):
    assert space_of([f"a={text}"]) == ({"a": expected}, {})


def test_a_shuffled_range_has_no_order():
    (found,) = space_of(["a=shuffle(range(1,4))"])[0].values()
    assert isinstance(found, CategoricalDistribution)
    assert sorted(found.choices) == [1, 2, 3]


@pytest.mark.parametrize(
    "text", ["choice(a,'b c',1e-3)", "1,2", "range(1,9,2)", "range(0.1,0.5,0.1)", "range(4,1,-1)"]
)
def test_the_grid_is_what_hydra_itself_would_run(text):
    words = [f"a={text}", "b=choice(0,1)", "c=0"]
    grid = grid_of(space_of(words)[0])
    ((*jobs,),) = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides(words), None
    )
    parsed = [OverridesParser.create().parse_overrides(list(job)) for job in jobs]
    expected = {(job[0].value(), job[1].value()) for job in parsed}
    found = {(a, b) for a in grid["a"] for b in grid["b"]}
    assert len(found) == len(expected)
    key = lambda pair: (str(type(pair[0])), pair)  # noqa: E731
    for one, other in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
        assert one == pytest.approx(other) if isinstance(one[0], float) else one == other


def test_the_last_word_of_a_key_counts():
    words = ["method=bitfit", "lr=interval(0,1)", "~callbacks.stop", "~a=1", "+x='a b'", "z={b: 1}"]
    space, fixed = space_of([*words, "method=choice(lora,bitfit)", "lr=0.1"])
    assert space == {"method": CategoricalDistribution(["lora", "bitfit"])}
    # written as in a plain sweep, but that a deletion has no value to write
    expected = ("~callbacks.stop", "~a=1", "+x='a b'", "z={b:1}", "lr=0.1")
    assert tuple(fixed.values()) == expected
    found = overrides_of({"method": "lora", "y": None}, fixed)
    assert found == ("method=lora", "y=null", *expected)


def test_each_value_is_proposed_early_on():
    space, _ = space_of(["a=choice(1,2,3)", "b=choice(x,y)", "c=interval(0,1)"])
    found = list(proposals_of(space))
    assert found[:3] == [
        {"a": 1, "b": "x", "c": 0.0},
        {"a": 2, "b": "y", "c": 0.0},
        {"a": 3, "b": "x", "c": 0.0},
    ]
    assert len(found) == len({tuple(own.items()) for own in found}) == 6
