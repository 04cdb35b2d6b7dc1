"""Supervised fine-tuning and direct alignment on a batch made by hand: who is learned from, and the loss.

The policy is a table (`tests/learner/by_hand.py`) and every token has an id of its own, so that the
gradient of a token's log-prob can be read off.

Dimension key: B completions, P pairs of a packed row.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.decoded_logits import decoded_logits
from core.decoding import UNCHANGED, Decoding
from core.models import logprobs_of
from core.packing import PackedRow
from learner.algorithm_config import DPOConfig, PreferenceAlgorithm, REBELConfig, RPOConfig, SFTConfig
from learner.batch import Batch, make_batch
from learner.losses import combine_metrics
from learner.preference import DirectAlignment, _pair_of, _pairs
from learner.supervised import SupervisedFineTuning, best_of, best_of_step
from tests.fakes import make_completion, make_group, make_prompt, make_rollout
from tests.learner.by_hand import TableEngine, micro_batch_of

POLICY_V = (-1.0, -1.0, -3.0, -2.0, -1.0, -9.0)
REFERENCE_V = (-2.0, -1.0, -2.0, -2.0, -2.0, -7.0)
BEHAVIOR_V = (-1.5, -1.0, -2.0, -3.0, -1.0, -8.0)


def batch_of(
    *groups: list[tuple[float, list[int]]],
    prompt_lengths: tuple[int, ...] = (),
    places: tuple[int, ...] | None = None,
) -> Batch:
    """Groups of (score, token ids of the completion); log-probs by token id."""
    made = []
    for number, members in enumerate(groups):
        prompt = make_prompt(*range(900, 900 + (prompt_lengths or (2,) * len(groups))[number]))
        rollouts = [
            make_rollout(
                make_completion(*ids, prompt=prompt, behavior=[BEHAVIOR_V[token] for token in ids]),
                score=score,
                reference=[REFERENCE_V[token] for token in ids],
            )
            for score, ids in members
        ]
        made.append(make_group(str(number), rollouts))
    return make_batch(made, places)


def scored(*groups: list[float], places: tuple[int, ...] | None = None) -> Batch:
    return batch_of(*([(score, [0]) for score in scores] for scores in groups), places=places)


def sft(policy: Any = None, **options: Any) -> SupervisedFineTuning:
    return SupervisedFineTuning(SFTConfig(kind="sft", **options), policy=policy, learning_rate=0.1)


def alignment(config: PreferenceAlgorithm, policy: Any = None) -> DirectAlignment:
    return DirectAlignment(config, policy=policy, learning_rate=0.1, decoding=Decoding(temperature=0.7))


# --- supervised fine-tuning -----------------------------------------------------------------------------


def test_the_best_of_a_group_in_their_order() -> None:
    batch = scored([3, 5, 1, 5, 4])
    assert best_of(range(5), batch, 1) == [1]  # of equals the first
    assert best_of(range(5), batch, 2) == [1, 3]
    assert best_of(range(5), batch, 3) == [1, 3, 4]
    assert best_of([4, 2, 0], batch, 2) == [0, 4]
    assert best_of(range(5), batch, 9) == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("process_group")
def test_members_are_all_the_best_of_each_prompt_or_the_best_of_the_step() -> None:
    batch = scored([1, 3, 2], [0, -1], [9, 8, 7])
    assert sft().members(batch) == list(range(8))
    assert sft(top_k=1).members(batch) == [1, 3, 5]
    assert sft(top_k=2).members(batch) == [1, 2, 3, 4, 5, 6]
    assert sft(top_k=2, top_k_of="step").members(batch) == [5, 6]
    assert sft(top_k=4, top_k_of="step").members(batch) == [1, 5, 6, 7]
    assert sft(top_k=20, top_k_of="step").members(batch) == list(range(8))


def test_of_equal_scores_the_first_groups_of_the_step_are_best_whoever_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four groups of two, all scored 1 and 0: the best three are those of groups 0, 1 and 2."""
    shares: list[list[tuple[int, ...]]] = [
        [(0, 1, 2, 3)],
        [(0, 2), (1, 3)],
        [(1, 2), (0, 3)],
        [(3,), (0, 1), (2,)],
    ]
    for ranks in shares:
        chosen = []
        for rank, places in enumerate(ranks):
            others = [_entries(number, other) for number, other in enumerate(ranks) if number != rank]
            monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(
                "learner.supervised.all_gather",
                lambda own, others=others: [*(entry for entries in others for entry in entries), *own],
            )
            batch = scored(*([0.0, 1.0] for _ in places), places=places)
            chosen += [(int(batch.group_ids_B[m]), m % 2) for m in best_of_step(batch, 3)]
        assert sorted(chosen) == [(0, 1), (1, 1), (2, 1)]


def _entries(rank: int, places: tuple[int, ...]) -> list[tuple[float, int, int, int]]:
    """What another rank tells of groups that score 0 and 1."""
    return [
        (-score, place, 2 * i + int(score), rank) for i, place in enumerate(places) for score in (0.0, 1.0)
    ]


def test_likelihood_by_hand() -> None:
    """Tokens 0, 1 | 2 of a step with 6 trained tokens: (1 + 1 + 3) / 6, and each token's slope is -1/6."""
    policy = TableEngine(*POLICY_V)
    objective = sft(policy)
    batch = batch_of([(0.0, [0, 1]), (0.0, [5])], [(0.0, [2])])
    assert objective.counts(batch, [0, 2]) == {"tokens": 3}
    metrics = objective.accumulate(micro_batch_of(batch, [0, 2]), {}, {"tokens": 6.0}, last=True)
    assert metrics["policy_loss"].item() == pytest.approx(5 / 6)
    assert policy.gradient() == pytest.approx([-1 / 6, -1 / 6, -1 / 6, 0, 0, 0])
    assert policy.temperatures == [1]  # texts that nobody sampled
    objective.accumulate(micro_batch_of(batch, []), {}, {"tokens": math.inf}, last=True)
    assert policy.gradient() == pytest.approx([-1 / 6, -1 / 6, -1 / 6, 0, 0, 0])
    assert objective.update(lambda peak: peak / 2) == {"gradient_norm": 2.5}
    assert policy.learning_rates == [0.05]


# --- pairs ----------------------------------------------------------------------------------------------


def test_the_best_and_the_worst_of_a_group_in_the_batch_order() -> None:
    assert _pair_of(range(3), scored([2, 9, 5])) == [0, 1]
    assert _pair_of(range(3), scored([9, 5, 2])) == [0, 2]
    assert _pair_of(range(4), scored([5, 1, 9, 5])) == [1, 2]
    assert _pair_of(range(4), scored([1, 7, 1, 7])) == [0, 1]  # of equals the first
    assert _pair_of(range(3), scored([4, 4, 4])) == []
    assert _pair_of([1], scored([4, 4])) == []


def test_a_group_of_equal_scores_is_left_out() -> None:
    objective = alignment(DPOConfig(kind="dpo"))
    batch = scored([1, 2, 0], [5, 5], [3, 4])
    assert objective.members(batch) == [1, 2, 5, 6]
    assert objective.counts(batch, [1, 2, 5, 6]) == {"pairs": 2}
    batch = scored([1, 1], [2, 2])
    assert objective.members(batch) == []
    assert objective.counts(batch, []) == {"pairs": 0}


def test_places_of_chosen_and_rejected_whatever_the_order_of_a_row() -> None:
    batch = scored([1, 2, 0], [3, 4])
    for members, chosen, rejected in (
        ([1, 2, 3, 4], [0, 3], [1, 2]),
        ([2, 1, 4, 3], [1, 2], [0, 3]),
        ([4, 2, 3, 1], [0, 3], [2, 1]),
    ):
        chosen_P, rejected_P = _pairs(batch, members)
        assert (chosen_P.tolist(), rejected_P.tolist()) == (chosen, rejected)


# --- direct alignment -----------------------------------------------------------------------------------


def pair_batch() -> tuple[Batch, list[int]]:
    """Two pairs, and what is worked out of them by hand.

    Group 0: token 0 scores 1, tokens 1, 2 score 0: a gap of 1.    Group 1: token 4 scores 2, token 5 scores 1
    and takes no part, token 3 scores 0: a gap of 2.
    Policy - reference: 1 | 0 - 1 | 0 | 1, so h = 1 - (-1) = 2 in group 0 and 1 - 0 = 1 in group 1.
    Policy - behavior: 1/2 | 0 - 1 | 1 | 0, so h = 1/2 - (-1) = 3/2 and 0 - 1 = -1.
    """
    batch = batch_of([(1.0, [0]), (0.0, [1, 2])], [(0.0, [3]), (1.0, [5]), (2.0, [4])], prompt_lengths=(2, 3))
    return batch, [0, 1, 2, 4]


SIGMOID_LOSSES = 0.313262, 0.474077
"""-ln sigmoid(1) and -ln sigmoid(1/2): with beta 1/2 the DPO loss of the two pairs."""

BY_HAND: list[tuple[PreferenceAlgorithm, float]] = [
    (DPOConfig(kind="dpo", beta=0.5), sum(SIGMOID_LOSSES) / 2),
    # ((2 - 1)^2 + (1 - 1)^2) / 2
    (DPOConfig(kind="dpo", beta=0.5, variant="ipo"), 0.5),
    # 0.9 * -ln sigmoid(x) + 0.1 * -ln sigmoid(-x), which is 0.1 x more than the former
    (
        DPOConfig(kind="dpo", beta=0.5, variant="conservative", label_smoothing=0.1),
        (sum(SIGMOID_LOSSES) + 0.1 + 0.05) / 2,
    ),
    # sigmoid(1) = 0.731059, sigmoid(2) = 0.880797
    (
        DPOConfig(kind="dpo", beta=0.5, weight_by_reward=True),
        (0.731059 * SIGMOID_LOSSES[0] + 0.880797 * SIGMOID_LOSSES[1]) / 2,
    ),
    # Chosen texts of 1 token, -ln p = 1 each; the prompts' 2 and 3 do not count: 2.4 * (1/1 + 1/1) / 2 = 2.4
    (DPOConfig(kind="dpo", beta=0.5, nll_coef=2.4), sum(SIGMOID_LOSSES) / 2 + 2.4),
    # KL of Bernoullis with p = sigmoid(1/2) = 0.622459 and q = sigmoid(1) = 0.731059, for beta h = 1, 1/2 and
    # eta * gap = 1/2, 1: KL(p || q) = 0.622459 ln(0.851448) + 0.377541 ln(1.403806) = 0.027957,
    #                     KL(q || p) = -0.731059 ln(0.851448) - 0.268941 ln(1.403806) = 0.026345
    (RPOConfig(kind="rpo", beta=0.5, eta=0.5), (0.027957 + 0.026345) / 2),
    # ((3/2 / 0.5 - 1)^2 + (-1 / 0.5 - 2)^2) / 2 = (4 + 16) / 2
    (REBELConfig(kind="rebel", eta=0.5), 10.0),
]


@pytest.mark.parametrize(("config", "expected"), BY_HAND)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_losses_by_hand(config: PreferenceAlgorithm, expected: float, order: list[int]) -> None:
    policy = TableEngine(*POLICY_V)
    objective = alignment(config, policy)
    batch, members = pair_batch()
    assert objective.members(batch) == members
    targets = objective.targets(batch, [], step=0)
    row = micro_batch_of(batch, [members[place] for place in order])
    metrics = objective.accumulate(row, targets, {"pairs": 2.0}, last=True)
    assert metrics["policy_loss"].item() == pytest.approx(expected, abs=2e-6)
    assert policy.temperatures == [0.7]
    assert policy.lasts == [True]


def test_metrics_by_hand() -> None:
    batch, members = pair_batch()
    for config, accuracy, margin in (
        (DPOConfig(kind="dpo"), 1.0, 3 / 2),  # h = 2, 1
        (REBELConfig(kind="rebel"), 0.5, 1 / 4),  # h = 3/2, -1
    ):
        objective = alignment(config, TableEngine(*POLICY_V))
        targets = objective.targets(batch, [], step=0)
        metrics = objective.accumulate(micro_batch_of(batch, members), targets, {"pairs": 2.0}, last=True)
        assert metrics["pair_accuracy_fraction"].item() == accuracy
        assert metrics["pair_margin_nats"].item() == pytest.approx(margin)
        assert metrics["pair_score_gap"].item() == pytest.approx(3 / 2)


def test_gradients_by_hand() -> None:
    # DPO: -beta sigmoid(-beta h) / 2 for tokens of the chosen, plus for those of the rejected:
    #   h = 2: 0.25 * 0.268941 = 0.067235;  h = 1: 0.25 * sigmoid(-1/2) = 0.25 * 0.377541 = 0.094385
    # REBEL: 2 (h / eta - gap) / eta / 2: (3 - 1) / 0.5 = 4;  (-2 - 2) / 0.5 = -8
    batch, members = pair_batch()
    expected: list[tuple[PreferenceAlgorithm, list[float]]] = [
        (DPOConfig(kind="dpo", beta=0.5), [-0.067235, 0.067235, 0.067235, 0.094385, -0.094385, 0]),
        (REBELConfig(kind="rebel", eta=0.5), [4, -4, -4, 8, -8, 0]),
    ]
    for config, gradient in expected:
        policy = TableEngine(*POLICY_V)
        objective = alignment(config, policy)
        targets = objective.targets(batch, [], step=0)
        objective.accumulate(micro_batch_of(batch, members), targets, {"pairs": 2.0}, last=True)
        assert policy.gradient() == pytest.approx(gradient, abs=1e-6)


def test_the_gradient_of_the_likelihood_term_by_hand() -> None:
    """What the term adds to plain DPO: -2.4 / length / 2 at the chosen tokens alone, of 2 and 1; prompts, here of
    2 and 3 tokens, do not count."""
    batch = batch_of([(1.0, [1, 2]), (0.0, [0])], [(0.0, [3]), (2.0, [4])], prompt_lengths=(2, 3))
    gradients = []
    for nll_coef in (0.0, 2.4):
        policy = TableEngine(*POLICY_V)
        objective = alignment(DPOConfig(kind="dpo", nll_coef=nll_coef), policy)
        targets = objective.targets(batch, [], step=0)
        objective.accumulate(micro_batch_of(batch, range(4)), targets, {"pairs": 2.0}, last=True)
        gradients.append(torch.tensor(policy.gradient()))
    torch.testing.assert_close(gradients[1] - gradients[0], torch.tensor([0, -0.6, -0.6, 0, -1.2, 0]))


class LogitsEngine(TableEngine):
    """Its table is the logits at every position."""

    def __call__(self, row: PackedRow, decoding: Decoding = UNCHANGED, *, logits: bool = False) -> Tensor:
        logits_NV = self.table_V.expand(len(row.target_ids_N), -1)
        return logprobs_of(decoded_logits(logits_NV, row.target_ids_N, decoding), row.target_ids_N)


@pytest.mark.parametrize("config", [DPOConfig(kind="dpo"), RPOConfig(kind="rpo"), REBELConfig(kind="rebel")])
@pytest.mark.parametrize("truncation", [{}, {"top_p": 0.6}, {"top_k": 1}, {"min_p": 0.9}])
def test_an_untrained_policy_has_a_log_ratio_of_0_whatever_is_cut_off(
    config: PreferenceAlgorithm, truncation: dict[str, Any]
) -> None:
    """To the reference, over the whole vocabulary. REBEL's is to what sampled, cut off as it was."""
    policy: Any = LogitsEngine(*POLICY_V)
    decoding = Decoding(temperature=0.7, **truncation)
    completions = [[0, 4], [2, 3, 5]]
    batch = batch_of([(float(ids == completions[0]), ids) for ids in completions])
    with torch.no_grad():
        row = micro_batch_of(batch, [0, 1]).row
        reference_N, behavior_N = policy(row, decoding.untruncated), policy(row, decoding)
    batch.scatter(reference_N, [0, 1], batch.reference_logprobs_BT)
    batch.scatter(behavior_N, [0, 1], batch.behavior_logprobs_BT)
    objective = DirectAlignment(config, policy=policy, learning_rate=0.1, decoding=decoding)
    targets = objective.targets(batch, [], step=0)
    metrics = objective.accumulate(micro_batch_of(batch, [0, 1]), targets, {"pairs": 1.0}, last=True)
    assert metrics["pair_margin_nats"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("config", "expected"), BY_HAND)
def test_rows_add_up_to_the_step_and_an_idle_row_adds_nothing(
    config: PreferenceAlgorithm, expected: float
) -> None:
    batch, members = pair_batch()
    whole, cut = TableEngine(*POLICY_V), TableEngine(*POLICY_V)
    targets = alignment(config).targets(batch, [], step=0)
    alignment(config, whole).accumulate(micro_batch_of(batch, members), targets, {"pairs": 2.0}, last=True)
    parts = [
        alignment(config, cut).accumulate(micro_batch_of(batch, part), targets, {"pairs": 2.0}, last=not part)
        for part in (members[:2], members[2:], [])
    ]
    assert cut.gradient() == pytest.approx(whole.gradient())
    assert cut.lasts == [False, False, True]
    assert combine_metrics(parts)["policy_loss"].item() == pytest.approx(expected, abs=2e-6)
