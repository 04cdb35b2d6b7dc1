"""Rollout groups -> one rank's batch of tensors -> packed micro-batches.

A batch keeps its per-token numbers padded over the completions' tokens, which is what GAE and group
advantages want; the networks see packed rows without padding. `Batch.select` goes from one to the other.

Dimension key: B rollouts of this rank, T completion tokens (padded), N trained tokens of one packed row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.messages import Bools, Int32s, Rollout, RolloutGroup
from core.packing import PackedRow, plan_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One rank's share of a step. Rollouts of a group lie side by side, so that the prompt they share
    can be forwarded once for all of them."""

    sequences: list[tuple[Int32s, Bools]]
    """Token ids (prompt, then completion) and the mask of trained tokens, one pair a rollout."""
    group_ids_B: torch.Tensor
    """[B] int64: which rollouts share a prompt; a group's id is its place in the step, the same on every rank."""
    scores_B: torch.Tensor
    """[B] float32: weighted reward, before the KL penalty."""
    mask_BT: torch.Tensor
    """[B, T] bool: True on completion tokens, False on padding."""
    behavior_logprobs_BT: torch.Tensor
    """[B, T] float32, nats; 0 on padding."""
    reference_logprobs_BT: torch.Tensor
    """[B, T] float32, nats; 0 on padding."""

    def __len__(self) -> int:
        return len(self.sequences)

    def members_of_groups(self) -> list[list[int]]:
        """The rollouts of each group."""
        groups: dict[int, list[int]] = {}
        for member, group in enumerate(self.group_ids_B.tolist()):
            groups.setdefault(group, []).append(member)
        return list(groups.values())

    def select(self, padded_BT: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
        """[N]: a padded quantity of some rollouts, in the order in which a packed row of them has it."""
        index = torch.as_tensor(members)
        return padded_BT[index][self.mask_BT[index]]

    def scatter(self, packed_N: torch.Tensor, members: Sequence[int], into_BT: torch.Tensor) -> None:
        """Write a packed row's quantity back where it belongs."""
        rows = torch.zeros(self.mask_BT[list(members)].shape, dtype=into_BT.dtype)
        rows[self.mask_BT[list(members)]] = packed_N.to(into_BT)
        into_BT[list(members)] = rows

    def plan(self, members: Sequence[int], token_budget: int, *, keep_groups: bool) -> list[list[int]]:
        """Which rollouts share a packed row of at most `token_budget` tokens; of a group all, if it is kept."""
        units = [[member] for member in members]
        if keep_groups:
            groups = dict.fromkeys(self.group_ids_B[list(members)].tolist())
            units = [[m for m in members if int(self.group_ids_B[m]) == group] for group in groups]
        lengths = [sum(len(self.sequences[member][0]) for member in unit) for unit in units]
        return [[m for place in row for m in units[place]] for row in plan_rows(lengths, token_budget)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One packed row, and where its rollouts stand in the batch. A row without members only keeps the ranks
    in step: none of its tokens counts."""

    batch: Batch
    members: Sequence[int]
    row: PackedRow

    @property
    def mask_N(self) -> torch.Tensor:
        return torch.full(self.row.target_ids_N.shape, bool(self.members))

    @property
    def sequence_ids_N(self) -> torch.Tensor:
        """[N] int64: which sequence of the row a trained token belongs to."""
        lengths_S = torch.tensor(self.row.trained_lengths)
        return torch.arange(len(lengths_S)).repeat_interleave(lengths_S)

    def select(self, padded_BT: torch.Tensor) -> torch.Tensor:
        """[N]: a padded quantity of the batch, in the order in which the row has it."""
        if not self.members:
            return torch.zeros(self.row.target_ids_N.shape)
        return self.batch.select(padded_BT, self.members)

    def scatter(self, packed_N: torch.Tensor, into_BT: torch.Tensor) -> None:
        """Write the row's quantity back where it belongs."""
        if self.members:
            self.batch.scatter(packed_N, self.members, into_BT)


def make_batch(groups: Sequence[RolloutGroup], places: Sequence[int] | None = None) -> Batch:
    """Groups as tensors; `places`: where each is in the step, if they are not all of it. Raises ValueError for a
    completion without a token."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [rollout.completion.num_completion_tokens for rollout in rollouts]
    if min(lengths) < 1:
        raise ValueError("a rollout has no completion token, so there is nothing to train on")
    mask_BT = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return Batch(
        sequences=[(rollout.completion.token_ids_T, rollout.completion.sampled_T) for rollout in rollouts],
        group_ids_B=torch.tensor(
            [
                place
                for place, group in zip(places or range(len(groups)), groups, strict=True)
                for _ in group.rollouts
            ]
        ),
        scores_B=torch.tensor([rollout.score for rollout in rollouts], dtype=torch.float32),
        mask_BT=mask_BT,
        behavior_logprobs_BT=_padded([r.completion.behavior_logprobs_T for r in rollouts], rollouts, mask_BT),
        reference_logprobs_BT=_padded([r.reference_logprobs_T for r in rollouts], rollouts, mask_BT),
    )


@torch.no_grad()
def forward_all(
    batch: Batch, micro_batches: Sequence[MicroBatch], compute: Callable[[MicroBatch], torch.Tensor]
) -> torch.Tensor:
    """[B, T]: what a network says of every trained token, before the step."""
    result_BT = torch.zeros(batch.mask_BT.shape)
    for micro_batch in micro_batches:
        micro_batch.scatter(compute(micro_batch), result_BT)
    return result_BT


def deal_minibatches(num_groups: int, count: int, *, seed: tuple[int, ...]) -> list[list[int]]:
    """Groups of a step, by place, dealt out to `count` mini-batches: the same however many ranks share them."""
    order = np.random.default_rng(seed).permutation(num_groups)
    return [part.tolist() for part in np.array_split(order, count)]


def share_of_rank(
    groups: Sequence[RolloutGroup], minibatches: Sequence[Sequence[int]], rank: int, world_size: int
) -> list[int]:
    """Places of the groups that a rank trains on: whole groups, and of every mini-batch the tokens spread as evenly
    as greedy choice does."""
    loads = [0] * world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for minibatch in minibatches:
        for place in sorted(minibatch, key=lambda place: (-groups[place].num_tokens, place)):
            lightest = loads.index(min(loads))
            shares[lightest].append(place)
            loads[lightest] += groups[place].num_tokens
    return sorted(shares[rank])


def _padded(
    values: list[np.ndarray[tuple[int], np.dtype[np.float32]]], rollouts: list[Rollout], mask_BT: torch.Tensor
) -> torch.Tensor:
    padded_BT = torch.zeros(mask_BT.shape)
    sampled = [value[rollout.completion.sampled_T] for value, rollout in zip(values, rollouts, strict=True)]
    padded_BT[mask_BT] = torch.from_numpy(np.concatenate(sampled))
    return padded_BT
