"""A random state that was written down is gone on from."""

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from learner.random_state import random_state, seed_random_state, set_random_state

NUM_DRAWS = 700
"""More than the 624 words that a generator holds before it makes new ones."""


@pytest.fixture(autouse=True)
def _own_generators() -> Iterator[None]:
    """Other tests find theirs as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        yield
    np.random.set_state(numpy_state)
    random.setstate(python_state)


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def draw() -> list[float]:
    """From each generator, and from those that keep half a pair of normal numbers for the next call."""
    return [
        float(torch.rand(())),
        float(torch.randn(3)[0]),
        np.random.randn(),
        random.gauss(0, 1),
        random.random(),
    ]


@pytest.mark.parametrize("num_before", [0, 1, 2, 701])
def test_every_generator_goes_on_where_it_was(num_before: int) -> None:
    seed(5)
    for _ in range(num_before):
        draw()
    kept = json.dumps(random_state())
    expected = [draw() for _ in range(NUM_DRAWS)]
    seed(6)
    assert all(one != other for one, other in zip(draw(), expected[0], strict=True))
    set_random_state(json.loads(kept))
    assert [draw() for _ in range(NUM_DRAWS)] == expected


def test_a_rank_that_has_no_state_draws_its_own_numbers_the_same_every_time() -> None:
    drawn = []
    for seeds in ((5, 2, 0), (5, 2, 1), (5, 3, 0), (5, 2, 0)):
        seed_random_state(*seeds)
        drawn.append(draw())
    assert drawn[0] == drawn[3]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert all(first != second for first, second in zip(drawn[one], drawn[other], strict=True))
