"""One rank of a learner whose checkpoints are tampered with and whose disk fails: see `learner_rank.py`.

python -m tests.learner.checkpoint_rank RANK WORLD_SIZE PORT FOLDER SCENARIO...
"""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from core.errors import UserError, WorkerError
from learner import checkpoint
from tests.learner.learner_rank import LORA, PPO, RLOO, Rank, Scenario, main

MARKER = "unpickled"


class Malicious:
    """Unpickling it opens a file for writing: what it could do instead is anything."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self._marker), "w")


def planted(zero_stage: int) -> Scenario:
    """Each file of a checkpoint in turn replaced by a malicious one, and then the checkpoint as it was."""

    def run(rank: Rank, name: str) -> None:
        folder = rank.folder / f"{name}-checkpoint"
        learner = rank.learner(zero_stage, RLOO)
        learner.train_step(rank.groups(0))
        checkpoint.save(learner, folder, rank=rank.rank)
        resumed = rank.learner(zero_stage, RLOO)
        elsewhere = rank.learner(0 if zero_stage else 2, RLOO)
        raised, raised_elsewhere = {}, {}
        for file in sorted(path for path in folder.rglob("*.pt")):
            content = file.read_bytes()
            dist.barrier()
            if rank.rank == 0:
                torch.save({"module": Malicious(rank.folder / f"{name}-{MARKER}")}, file)
            dist.barrier()
            raised[str(file)] = said(lambda: checkpoint.load(resumed, folder))
            raised_elsewhere[str(file)] = said(lambda: checkpoint.load(elsewhere, folder))
            dist.barrier()
            if rank.rank == 0:
                file.write_bytes(content)
        dist.barrier()
        with pytest.MonkeyPatch.context() as patch:
            reads = record_reads(patch)
            checkpoint.load(resumed, folder)
            checkpoint.load(elsewhere, folder)
        rank.write(f"{name}-saved", learner)
        rank.write(f"{name}-elsewhere", elsewhere)
        rank.write(name, resumed, raised=raised, raised_elsewhere=raised_elsewhere, reads=reads)

    return run


def record_reads(patch: pytest.MonkeyPatch) -> list[Any]:
    """Collects what every `torch.load` says of `weights_only`."""
    reads = []
    load = torch.load

    def recording(*arguments: Any, **options: Any) -> Any:
        reads.append(options.get("weights_only"))
        return load(*arguments, **options)

    patch.setattr(torch, "load", recording)
    return reads


def other_shapes(rank: Rank, name: str) -> None:
    """Checkpoints that another shape of learner reads, and one with a file missing."""
    folder = rank.folder / f"{name}-checkpoint"
    checkpoint.save(rank.learner(2, RLOO), folder, rank=rank.rank)
    raised = {
        "networks": said(lambda: checkpoint.load(rank.learner(2, PPO), folder)),
        "parameters": said(lambda: checkpoint.load(rank.learner(0, RLOO, **LORA), folder)),
    }
    for what, missing in (("files", "policy"), ("random states", "random-states.json")):
        dist.barrier()
        if rank.rank == 0:
            (folder / missing).rename(rank.folder / f"{name}-{missing}")
        dist.barrier()
        raised[what] = said(lambda: checkpoint.load(rank.learner(2, RLOO), folder))
        dist.barrier()
        if rank.rank == 0:
            (rank.folder / f"{name}-{missing}").rename(folder / missing)
    rank.write(name, rank.learner(2, RLOO), raised=raised)


FAULTS = {
    "full-rank-0": ("policy/state/mp_rank_00_model_states.pt", Path("/dev/full")),
    "full-rank-1": ("policy/state/zero_pp_rank_1_mp_rank_00_optim_states.pt", Path("/dev/full")),
    "full-value-model": ("value_model/state/zero_pp_rank_1_mp_rank_00_optim_states.pt", Path("/dev/full")),
    "no-folder": ("policy", Path("/dev/null")),
    "no-tag-folder": ("policy/state", Path("/dev/null")),
    "no-learner-json": ("learner.json", Path("/dev/full")),
    "no-random-states": ("random-states.json", Path("/dev/full")),
}
"""What of a checkpoint cannot be written: a link where the disk is always full, or that no folder can replace."""

HARMLESS = {"no-scripts": ("policy/zero_to_fp32.py", Path("/dev/full"))}
"""What DeepSpeed copies, and Leash does without."""


def failing(rank: Rank, name: str) -> None:
    """Saves that fail at one rank, in all the ways above; then one that does not, and a step."""
    learner = rank.learner(2, PPO)
    raised, seconds = {}, {}
    for fault, (file, target) in (FAULTS | HARMLESS).items():
        folder = rank.folder / f"{name}-{fault}"
        if rank.rank == 0:
            (folder / file).parent.mkdir(parents=True)
            (folder / file).symlink_to(target)
        dist.barrier()
        started = time.monotonic()
        raised[fault] = said(lambda folder=folder: checkpoint.save(learner, folder, rank=rank.rank))
        seconds[fault] = time.monotonic() - started
    checkpoint.save(learner, rank.folder / f"{name}-checkpoint", rank=rank.rank)
    learner.train_step(rank.groups(0))
    rank.write(name, learner, raised=raised, seconds=seconds, version=learner.policy_version)


def said(action: Any) -> str:
    """Kind and text of what it raised; nothing if it did not."""
    try:
        action()
    except (UserError, WorkerError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


SCENARIOS: dict[str, Scenario] = {
    **{f"planted-{stage}": planted(stage) for stage in range(4)},
    "other-shapes": other_shapes,
    "failing": failing,
}

if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    main(SCENARIOS)
