"""An endless, seeded stream over one collection or several, mixed by weight.

Item k is the same in every run with this seed, however the stream is read: a resumed run goes on where it stopped.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

CYCLE = 1000
"""Items after which a mixture's pattern repeats: weights are kept to a thousandth."""
ORDERS_KEPT = 4
"""For each collection: of this epoch and the next, and where resampled prompts come from. Shuffling a million costs
tens of milliseconds, which no item should."""


class SeededStream(Generic[T]):
    """Every collection in a new order each epoch; their items take turns as their weights say."""

    def __init__(
        self, collections: Sequence[Sequence[T]], *, seed: int, weights: Sequence[float] | None = None
    ) -> None:
        assert collections, "a stream has a source"
        assert all(collections), "nothing flows from an empty collection"
        self._collections = collections
        self._seed = seed
        self._order = lru_cache(ORDERS_KEPT * len(collections))(self._shuffled)
        self._turns = [0] if len(collections) == 1 else _turns(weights or [1.0] * len(collections))

    def __getitem__(self, number: int) -> T:
        which, index = self.place(number)
        return self._collections[which][index]

    def place(self, number: int) -> tuple[int, int]:
        """Which collection item `number` comes from, and where in it."""
        cycle, turn = divmod(number, len(self._turns))
        which = self._turns[turn]
        count = cycle * self._turns.count(which) + self._turns[:turn].count(which)
        epoch, position = divmod(count, len(self._collections[which]))
        return which, int(self._order(epoch, which)[position])

    def _shuffled(self, epoch: int, which: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The order of a collection in an epoch."""
        return np.random.default_rng((self._seed, epoch, which)).permutation(len(self._collections[which]))


def _turns(weights: Sequence[float]) -> list[int]:
    """Whose turn it is in a cycle: always the one that is furthest behind its share, and nobody never."""
    share = np.maximum(np.array(weights) / sum(weights), 1 / CYCLE)
    share /= share.sum()
    turns: list[int] = []
    taken = np.zeros(len(share))
    for number in range(1, CYCLE + 1):
        which = int(np.argmax(share * number - taken))
        taken[which] += 1
        turns.append(which)
    return turns
