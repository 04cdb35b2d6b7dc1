"""A reward model's whole network learned from rankings, from where the head on frozen features left it.

    rankings of texts -> packed rows -> loss of the order, likelihood of the best -> ZeRO step

The likelihood of the texts that people preferred holds the features near language, so that they generalise
(arXiv:2406.10216, eq. 5). Its logits come from the input embedding, as in models that tie both.

Several ranks share each step's rankings and normalise by all of them, so their number does not change the update.

Dimension key: R rankings of a step or row, K texts of a ranking, S texts of a row, T token positions of a row,
N tokens of a row whose likelihood counts, V vocabulary, F hidden size.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from core.errors import UserError, WorkerError
from core.messages import Bools, Int32s
from core.models import ScalarModel, hidden_states, load_scalar_model, logprobs_of
from core.packing import PackedRow, pack_row, plan_rows
from core.pretrained import load_network
from core.stream import SeededStream
from learner.checkpoint import save_network
from learner.config import LearnerConfig, RewardModelConfig, RewardTuningConfig
from learner.engine import ZeroEngine
from learner.lora import add_adapter
from learner.losses import bradley_terry_loss, k_wise_loss
from learner.process_group import all_reduce_max, all_reduce_sum, join_group, leave_group, place_in_group
from learner.rankings import NOBODY, RankedTexts, Rankings
from learner.reward_head import margins

DEADLINE_S = 60
REPORTED_STEPS = 10
"""Losses of the first and of the last so many steps are reported."""


def tune_on_ranks(
    folder: Path, texts: RankedTexts, config: RewardModelConfig, *, report: Callable[[str], None]
) -> dict[str, float]:
    """Train the reward model in `folder` and write it back; losses of the first and the last steps.

    Each rank is a process of its own on this machine: DeepSpeed does not survive its group, and its environment
    is not for the workers that come later. Raises what a rank raised, and `WorkerError` if one died.
    """
    assert config.tuning is not None
    ranks = range(config.tuning.world_size)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context, processes, ends = get_context("spawn"), [], []
    try:
        for rank in ranks:
            end, far_end = context.Pipe(duplex=False)
            work = (far_end, rank, port, folder, texts, config)
            processes.append(context.Process(target=_answer, args=work, daemon=True))
            with _no_gpus():
                processes[-1].start()
            far_end.close()  # or its death would go unnoticed
            ends.append(end)
        answers = [_hear(rank, end) for rank, end in enumerate(ends)]
    finally:
        for process in processes:
            process.terminate()
            process.join()
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    if errors:  # those who only lost the others say less
        raise next((error for error in errors if isinstance(error, UserError | WorkerError)), errors[0])
    figures: dict[str, float] = answers[0]
    report(
        f"backbone: {config.tuning.steps} steps on {len(ranks)} ranks, "
        f"loss {figures['tuning_loss_first']:.3f} -> {figures['tuning_loss_last']:.3f}"
    )
    return figures


@contextmanager
def _no_gpus() -> Iterator[None]:
    """For processes that start within: rows, losses and the first features are a processor's, and all ranks would
    meet on the first GPU."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _hear(rank: int, end: Connection) -> Any:
    """What a rank answers; that it died is its answer, too. Its peers' waits have deadlines, so each ends."""
    try:
        return end.recv()
    except EOFError:
        return WorkerError(f"reward model: rank {rank} of those that tune its backbone died")


def _answer(
    end: Connection,
    rank: int,
    port: int,
    folder: Path,
    texts: RankedTexts,
    config: RewardModelConfig,
) -> None:
    """The process of one rank: from joining the group to leaving it."""
    assert config.tuning is not None
    world_size = config.tuning.world_size
    torch.set_num_threads(max(1, config.threads // world_size))
    try:
        join_group(rank=rank, world_size=world_size, address="127.0.0.1", port=port, deadline_s=DEADLINE_S)
        end.send(tune(folder, texts, config))
    except Exception as error:  # handed to the process that asked
        end.send(error)
    finally:
        leave_group()


def tune(folder: Path, texts: RankedTexts, config: RewardModelConfig) -> dict[str, float]:
    """The work of one rank of a learner group. Raises `NonFiniteError` before weights break."""
    assert config.tuning is not None
    tuner = RewardTuner(folder, texts, config)
    losses = [tuner.step(number) for number in range(config.tuning.steps)]
    tuner.save(folder)
    return {
        "tuning_loss_first": fmean(losses[:REPORTED_STEPS]),
        "tuning_loss_last": fmean(losses[-REPORTED_STEPS:]),
    }


class ScoresAndLogprobs(ScalarModel):
    """A reward model that also says how likely it finds some of the texts."""

    def forward(self, row: PackedRow) -> Any:
        """([S] scores at the last tokens, [N] log-probs in nats of the row's trained tokens)."""
        hidden_TF = hidden_states(self.model, row)
        head: Any = self.model.score
        embedding_VF: Any = self.model.get_input_embeddings().weight
        logits_NV = hidden_TF[row.predicting_N] @ embedding_VF.T
        return head(hidden_TF[row.last_S]).float()[:, 0], logprobs_of(logits_NV.float(), row.target_ids_N)


class RewardTuner:
    """One rank: its share of rankings that come in a seeded order, the same for all."""

    def __init__(self, folder: Path, texts: RankedTexts, config: RewardModelConfig) -> None:
        assert config.tuning is not None
        self._texts = texts
        self._rankings = texts.rankings
        self._config = config
        self._tuning: RewardTuningConfig = config.tuning
        self._order = SeededStream([range(len(self._rankings.members_RK))], seed=config.split_seed)
        self._rank, self._world_size = place_in_group()
        torch.manual_seed(config.split_seed)  # of the adapters
        module = ScoresAndLogprobs(load_scalar_model(folder, "float32").model)
        if self._tuning.lora is not None:
            add_adapter(module, self._tuning.lora)
        learner = LearnerConfig(
            world_size=self._world_size, learning_rate=self._tuning.learning_rate, lora=self._tuning.lora
        )
        self._engine = ZeroEngine(module, learner, dtype="float32")

    def step(self, number: int) -> float:
        """One optimizer step on the next rankings; their mean loss."""
        per_step = self._tuning.rankings_per_step
        chosen = [self._order[position] for position in range(number * per_step, (number + 1) * per_step)]
        num_preferred = sum(int(mask.sum()) for _, mask in self._sequences(chosen))
        rows = self._rows(chosen[self._rank :: self._world_size])
        num_rows = all_reduce_max(len(rows))  # ranks must call backward equally often
        loss = 0.0
        for place in range(num_rows):
            row, share = (rows[place], 1.0) if place < len(rows) else (chosen[:1], 0.0)
            loss += self._accumulate(row, num_preferred, share, last=place == num_rows - 1)
        left = 1 - number / self._tuning.steps
        self._engine.step(self._tuning.learning_rate * left)
        return float(all_reduce_sum(torch.tensor(loss, dtype=torch.float64)))

    def save(self, folder: Path) -> None:
        """Write the network, adapters added in, as the sequence classifier that it came from."""
        network = load_network(AutoModelForSequenceClassification, folder, dtype=torch.float32)
        save_network(self._engine, self._tuning.lora, network, folder, rank=self._rank)

    def _rows(self, chosen: Sequence[int]) -> list[list[int]]:
        """Which rankings share a packed row."""
        members = self._rankings.members_RK[list(chosen)].tolist()
        lengths = [
            sum(len(self._texts.token_ids[text]) for text in ranked if text != NOBODY) for ranked in members
        ]
        return [[chosen[place] for place in row] for row in plan_rows(lengths, self._config.token_budget)]

    def _sequences(self, rankings: Sequence[int]) -> list[tuple[Int32s, Bools]]:
        """Texts of rankings, and the tokens whose likelihood counts: those of the best, but for its prompt."""
        members_RK, ranks_RK = self._rankings.members_RK[rankings], self._rankings.ranks_RK[rankings]
        sequences = []
        for text, rank in zip(members_RK.flatten().tolist(), ranks_RK.flatten().tolist(), strict=True):
            if text == NOBODY:
                continue
            ids = self._texts.token_ids[text]
            counts = self._tuning.nll_coef > 0 and rank == 0
            sequences.append((ids, (np.arange(len(ids)) >= self._texts.starts[text]) & counts))
        return sequences

    def _accumulate(self, rankings: list[int], num_preferred: int, share: float, *, last: bool) -> float:
        """Forward and backward of one row; its part of the step's mean loss. A share of 0 counts nothing."""
        outputs: Any = self._engine(pack_row(self._sequences(rankings)))
        scores_S, logprobs_N = outputs
        loss = self._order_loss(scores_S, rankings)
        if num_preferred:
            loss = loss - self._tuning.nll_coef * logprobs_N.sum() / num_preferred
        loss = loss * share
        self._engine.backward(loss, last=last)
        return float(loss.detach())

    def _order_loss(self, scores_S: Tensor, rankings: list[int]) -> Tensor:
        """Its mean is over the rankings of the step, not of the row."""
        row = Rankings(
            members_RK=self._rankings.members_RK[rankings], ranks_RK=self._rankings.ranks_RK[rankings]
        )
        present_RK = row.members_RK != NOBODY
        scores_RK = torch.zeros(present_RK.shape).masked_scatter(present_RK, scores_S)
        normalizer = float(self._tuning.rankings_per_step)
        if self._config.loss == "k-wise":
            return k_wise_loss(scores_RK, row.ranks_RK, normalizer=normalizer)
        margin_R = margins(self._texts.ratings_S, row, self._config)
        return bradley_terry_loss(scores_RK[:, 0], scores_RK[:, 1], margin=margin_R, normalizer=normalizer)
