"""The process in which a reward server's reward runs: a hanging or crashing reward is ended and started again.

    server process                         scoring process
    score(completions) --- pipe ---------> reward.score, then one outcome each: a score, or what went wrong

The server's token is not in that process's memory, and its event loop shares no interpreter with the reward.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.config import RewardConfig
from core.config import ModelConfig
from core.errors import RewardError, UserError, WorkerLost, WorkerSilent
from core.messages import Completion

if TYPE_CHECKING:
    from actors.rewards import Reward

LAST_MOMENTS_S = 5.0
"""From the end of a process's pipe to its exit code."""
Outcome = float | str
"""A score, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSource:
    """What the scoring process loads."""

    config: RewardConfig
    path: Path | None
    """Folder of a reward model."""
    model_path: Path
    model: ModelConfig


class ScoringProcess:
    """The reward behind a pipe. `score` is called from one thread at a time."""

    def __init__(self, source: RewardSource, *, deadline_s: float, start_s: float) -> None:
        """`deadline_s`: for one batch. `start_s`: for a process to load its reward."""
        self._source = source
        self._deadline_s = deadline_s
        self._start_s = start_s
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self.vocab_size: int | None = None
        """Of a reward model, once it is up."""

    def start(self) -> None:
        """Load the reward. Raises `UserError` for what is wrong with it, or `WorkerLost`."""
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._source), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = pipe
        loaded = self._receive("loading the reward", self._start_s)
        if isinstance(loaded, UserError):
            self._end()
            raise loaded
        self.vocab_size = loaded

    def score(self, completions: Sequence[Completion]) -> list[Outcome]:
        """One outcome a completion. Raises `WorkerSilent` after the deadline, `WorkerLost` if the process died."""
        if self._process is None or not self._process.is_alive():
            self.start()
        assert self._pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it died just now: `_receive` says so
            self._pipe.send(list(completions))
        outcomes: list[Outcome]
        outcomes, exhausted = self._receive("scoring", self._deadline_s)
        if exhausted:
            self._end()
        return outcomes

    def close(self) -> None:
        """End the process, from whichever thread: a batch under way raises `WorkerLost`."""
        if self._process is not None:
            self._process.kill()

    def _end(self) -> int | None:
        """End the process and wait until it is gone; its exit code."""
        assert self._process is not None
        self._process.kill()
        self._process.join()
        return self._process.exitcode

    def _receive(self, what: str, deadline_s: float) -> Any:
        """What the process sends. If nothing comes it is ended, and the next batch starts another."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(deadline_s):
                self._end()
                raise WorkerSilent(f"the reward did not answer within {deadline_s:g} s ({what})")
            return self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            assert self._process is not None
            self._process.join(LAST_MOMENTS_S)
            raise WorkerLost(f"the reward's process died ({what}), exit code {self._end()}") from error


def _serve(pipe: Connection, source: RewardSource) -> None:
    """The scoring process. It ends when the server does, whatever the reward is at."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the server, which ends this process
    os.environ["OMP_NUM_THREADS"] = str(source.config.resources.threads)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where users' functions are looked for
    # torch reads the number of threads when it is imported; the server does without torch.
    from actors.rewards import load_reward

    try:
        reward = load_reward(source.config, source.path, source.model_path, source.model)
    except UserError as error:
        pipe.send(UserError(str(error)))
        return
    pipe.send(getattr(reward, "vocab_size", None))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            outcomes = outcomes_of(reward, pipe.recv())
            pipe.send((outcomes, getattr(reward, "exhausted", False)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def outcomes_of(reward: "Reward", completions: Sequence[Completion]) -> list[Outcome]:
    """One outcome a completion, whoever else's are in the batch.

    A function sees a column only if all completions of its batch have it, so those with other columns are another
    batch. If a batch fails, each of its completions is scored alone: nobody goes without for somebody else's text.
    """
    batches: dict[frozenset[str], list[int]] = {}
    for index, completion in enumerate(completions):
        batches.setdefault(frozenset(completion.prompt.columns), []).append(index)
    outcomes: dict[int, Outcome] = {}
    for indices in batches.values():
        batch = [completions[index] for index in indices]
        try:
            scores: Sequence[Outcome] = reward.score(batch)
        except RewardError:
            scores = [_outcome_of(reward, completion) for completion in batch]
        outcomes |= zip(indices, map(_checked, scores), strict=True)
    return [outcomes[index] for index in range(len(completions))]


def _outcome_of(reward: "Reward", completion: Completion) -> Outcome:
    try:
        return reward.score([completion])[0]
    except RewardError as error:
        return str(error)


def _checked(score: Outcome) -> Outcome:
    if isinstance(score, float) and not math.isfinite(score):
        return f"the reward returned {score}; rewards must be finite"
    return score
