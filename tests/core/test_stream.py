"""Seeded streams: every item once an epoch, the same however it is read, shares as the weights say."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.stream import CYCLE, SeededStream

ELEVEN = list(range(11))


@given(st.integers(0, 2**40), st.integers(0, 20))
def test_every_epoch_brings_every_item_once(seed: int, epoch: int) -> None:
    stream = SeededStream([ELEVEN], seed=seed)
    numbers = range(epoch * 11, (epoch + 1) * 11)
    seen = [stream[number] for number in numbers]
    assert sorted(seen) == ELEVEN
    again = SeededStream([ELEVEN], seed=seed)
    assert [again[number] for number in reversed(numbers)] == seen[::-1]


def test_a_collection_is_shuffled_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for every item: of a million that takes tens of milliseconds."""
    shuffles: list[tuple[int, ...]] = []
    plain = np.random.default_rng

    def counted(seed: tuple[int, ...]) -> np.random.Generator:
        shuffles.append(seed)
        return plain(seed)

    monkeypatch.setattr("core.stream.np.random.default_rng", counted)
    stream = SeededStream([ELEVEN, ELEVEN], seed=3)
    elsewhere = 2**40
    for number in range(44):
        stream.place(number)
        stream.place(elsewhere + number % 5)
    assert len(set(shuffles)) == len(shuffles)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(SeededStream([ELEVEN], seed=seed)[epoch * 11 + place] for place in range(11))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_collections_take_turns_by_weight() -> None:
    stream = SeededStream([["a"], ["b"]], seed=0, weights=[3.0, 1.0])
    assert "".join(stream[number] for number in range(8)) == "aabaaaba"
    unweighted = SeededStream([["a"], ["b"], ["c"]], seed=0)
    assert Counter(unweighted[number] for number in range(300)) == {"a": 100, "b": 100, "c": 100}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 9)), min_size=2, max_size=4),
    st.integers(0, 2**40),
)
def test_a_mixture_brings_every_item_of_a_collection_before_one_comes_again(
    parts: list[tuple[float, int]], seed: int
) -> None:
    collections = [[(which, item) for item in range(size)] for which, (_, size) in enumerate(parts)]
    stream = SeededStream(collections, seed=seed, weights=[weight for weight, _ in parts])
    drawn = [stream[number] for number in range(CYCLE + 100)]
    for which, collection in enumerate(collections):
        own = [item for item in drawn if item[0] == which]
        assert own, "nobody's turn never comes"
        for start in range(0, len(own) - len(collection) + 1, len(collection)):
            assert sorted(own[start : start + len(collection)]) == collection


def test_a_small_share_is_kept() -> None:
    stream = SeededStream([["often"], ["seldom"]], seed=0, weights=[1.0, 1e-9])
    assert Counter(stream[number] for number in range(CYCLE)) == {"often": CYCLE - 1, "seldom": 1}


def test_collections_of_one_size_have_orders_of_their_own() -> None:
    stream = SeededStream([ELEVEN, ELEVEN], seed=0)
    drawn = [(stream.place(number)[0], stream[number]) for number in range(22)]
    first, second = ([item for which, item in drawn if which == part] for part in (0, 1))
    assert sorted(first) == sorted(second) == ELEVEN
    assert first != second


@pytest.mark.parametrize("collections", [[], [[]], [[1], []]])
def test_nothing_to_stream(collections: list[list[int]]) -> None:
    with pytest.raises(AssertionError):
        SeededStream(collections, seed=0)
