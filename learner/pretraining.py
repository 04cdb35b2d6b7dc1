"""PPO-ptx: the gradient of a text dataset's likelihood, mixed into every update of the policy.

    loss = policy gradient loss - coef * mean log-likelihood of the texts' tokens

(InstructGPT, arXiv:2203.02155, eq. 2; RLHF book, Regularization, eq. 6.) It holds the policy near human text where
the KL penalty looks only at what the policy itself samples.
"""

import torch

from core.messages import Demonstration
from core.packing import pack_row, plan_rows
from core.stream import SeededStream
from learner.engine import ZeroEngine
from learner.process_group import all_reduce_max, all_reduce_sum


class Pretraining:
    """Texts in a seeded order, so many a step, spread over the ranks."""

    def __init__(
        self,
        texts: SeededStream[Demonstration],
        *,
        coef: float,
        texts_per_step: int,
        policy: ZeroEngine,
        rank: int,
        world_size: int,
        token_budget: int,
    ) -> None:
        self._texts = texts
        self._coef = coef
        self._texts_per_step = texts_per_step
        self._policy = policy
        self._rank = rank
        self._world_size = world_size
        self._token_budget = token_budget

    def accumulate(self, step: int) -> dict[str, float]:
        """Forward and backward of the step's texts, the same in each update; an optimizer step must follow.
        All ranks call."""
        numbers = range(step * self._texts_per_step, (step + 1) * self._texts_per_step)
        chosen = [(text.token_ids_T, text.sampled_T) for text in map(self._texts.__getitem__, numbers)]
        own = chosen[self._rank :: self._world_size]
        plan = plan_rows([len(token_ids) for token_ids, _ in own], self._token_budget)
        rows = [pack_row([own[index] for index in row]) for row in plan]
        shortest = pack_row([min(chosen, key=lambda sequence: len(sequence[0]))])
        idle = all_reduce_max(len(rows)) - len(rows)
        num_tokens = float(all_reduce_sum(torch.tensor(sum(len(row.target_ids_N) for row in rows))))
        total = torch.zeros((), dtype=torch.float64)
        for row, counts in [*((row, 1.0) for row in rows), *((shortest, 0.0) for _ in range(idle))]:
            loss = -counts * self._policy(row.to(self._policy.device)).cpu().sum() / num_tokens
            self._policy.backward(self._coef * loss, last=False)
            total += loss.detach()
        return {"pretraining_loss": float(all_reduce_sum(total))}
