"""Sequences of any length, laid end to end in rows without padding.

Dimension key: T token positions of one row, N trained tokens of one row, S sequences of one bucket,
L token positions of the longest sequence of a bucket, P places (S * L) of all buckets, end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.messages import Bools, Int32s, Int64s


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """How to lay a row out as padded buckets for attention, and how to put it together again."""

    buckets: tuple[tuple[int, int], ...]
    """(S, L): so many sequences, the longest so long. One attention call handles a bucket."""
    gather_P: torch.Tensor
    """[P] int64: where in the row the token of each place stands; padding repeats a sequence's last token."""
    place_T: torch.Tensor
    """[T] int64: the place of each token of the row."""

    def to(self, device: torch.device) -> "PackedAttention":
        return PackedAttention(self.buckets, self.gather_P.to(device), self.place_T.to(device))


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One forward pass: sequences end to end, each attending to itself alone."""

    token_ids_T: torch.Tensor
    """[T] int64."""
    position_ids_T: torch.Tensor
    """[T] int64, from 0 in every sequence."""
    predicting_N: torch.Tensor
    """[N] int64: positions whose hidden state predicts a trained token (the position before it)."""
    target_ids_N: torch.Tensor
    """[N] int64: the trained tokens themselves."""
    last_S: torch.Tensor
    """[sequences] int64: position of each sequence's last token."""
    trained_lengths: tuple[int, ...]
    """Trained tokens of each sequence, to split [N] results again."""
    attention: "PackedAttention"

    def to(self, device: torch.device) -> "PackedRow":
        if device.type == "cpu":
            return self
        return PackedRow(
            token_ids_T=self.token_ids_T.to(device),
            position_ids_T=self.position_ids_T.to(device),
            predicting_N=self.predicting_N.to(device),
            target_ids_N=self.target_ids_N.to(device),
            last_S=self.last_S.to(device),
            trained_lengths=self.trained_lengths,
            attention=self.attention.to(device),
        )


def plan_rows(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Which sequences share a row: first-fit decreasing. A sequence over the budget gets a row of its own."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(free) if lengths[index] <= room), None)
        if row is None:
            rows.append([])
            free.append(token_budget)
            row = len(rows) - 1
        rows[row].append(index)
        free[row] -= lengths[index]
    return [sorted(row) for row in rows]


def pack_row(sequences: Sequence[tuple[Int32s, Bools]]) -> PackedRow:
    """Lay sequences end to end. Each is its token ids and the mask of its trained tokens.

    The first token of a sequence cannot be trained on: nothing predicts it.
    """
    lengths = np.array([len(token_ids) for token_ids, _ in sequences])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    token_ids = np.concatenate([token_ids for token_ids, _ in sequences]).astype(np.int64)
    trained = np.concatenate([mask for _, mask in sequences])
    assert not trained[starts].any(), "the first token of a sequence has nothing that predicts it"
    targets = np.flatnonzero(trained)
    return PackedRow(
        token_ids_T=torch.from_numpy(token_ids),
        position_ids_T=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        predicting_N=torch.from_numpy(targets - 1),
        target_ids_N=torch.from_numpy(token_ids[targets]),
        last_S=torch.from_numpy(starts + lengths - 1),
        trained_lengths=tuple(int(mask.sum()) for _, mask in sequences),
        attention=_bucket_by_length(starts, lengths),
    )


def _bucket_by_length(starts: Int64s, lengths: Int64s) -> PackedAttention:
    """Group sequences whose lengths share a power of two, so that attention pads less than half."""
    exponents = np.ceil(np.log2(np.maximum(lengths, 8))).astype(int)
    buckets, gathers, valids = [], [], []
    for exponent in np.unique(exponents):
        members = np.flatnonzero(exponents == exponent)
        offsets = np.arange(lengths[members].max())
        buckets.append((len(members), len(offsets)))
        gathers.append(starts[members, None] + np.minimum(offsets[None], lengths[members, None] - 1))
        valids.append(offsets[None] < lengths[members, None])
    gather_P = np.concatenate([gather.ravel() for gather in gathers])
    places = np.flatnonzero(np.concatenate([valid.ravel() for valid in valids]))
    place_T = np.empty_like(places)
    place_T[gather_P[places]] = places
    return PackedAttention(tuple(buckets), torch.from_numpy(gather_P), torch.from_numpy(place_T))
