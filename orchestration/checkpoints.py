"""From where a run goes on: the newest whole checkpoint, and the ledger and the records brought to it."""

import asyncio
from pathlib import Path

from learner.group import LearnerGroup
from orchestration.ledger.ledger import Ledger
from orchestration.recipe.config import Recipe
from orchestration.reporting.run_log import RunLog
from orchestration.run_folder import RunFolder


class Checkpoints:
    """Saves the learner and brings it back, together with the account of what it was trained on.

    version = await checkpoints.resume()      # 0 for a new run
    await checkpoints.save(version)           # from here on the steps up to this one are committed
    version = await checkpoints.roll_back()   # the learner died and is up again
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        learner: LearnerGroup,
        log: RunLog,
        *,
        journals_groups: bool,
    ) -> None:
        """`journals_groups`: whether groups are sampled, and so worth keeping."""
        self._recipe = recipe
        self._folder = folder
        self._learner = learner
        self._log = log
        self._journals_groups = journals_groups
        self.ledger: Ledger

    async def resume(self) -> int:
        """The version that training starts from: that of the newest whole checkpoint, or 0."""
        checkpoint = await asyncio.to_thread(self._folder.latest_checkpoint)
        version = await self._load(checkpoint)
        self.ledger = Ledger.open(
            self._folder.path,
            committed_step=version,
            groups_per_step=self._recipe.trainer.prompts_per_step,
            journals_groups=self._journals_groups,
        )
        return version

    async def roll_back(self) -> int:
        """The version that the learner, started anew, goes on from."""
        version = await self._load(await asyncio.to_thread(self._folder.latest_checkpoint))
        self.ledger.rollback(version)
        return version

    async def save(self, version: int, *, keep: int = 1) -> None:
        """A checkpoint of this version, which commits the steps up to it; the newest `keep` stay. Sampling goes on
        meanwhile."""
        unfinished = self._folder.begin_checkpoint(version).absolute()
        await self._learner.save(unfinished)
        self.ledger.require_ownership()
        checkpoint = await asyncio.to_thread(self._folder.commit_checkpoint, unfinished, keep=keep)
        self.ledger.commit(version)
        self._log.checkpoint(checkpoint)

    @property
    def committed_step(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        return self.ledger.committed_step

    def close(self) -> None:
        """Let go of the ledger."""
        if hasattr(self, "ledger"):
            self.ledger.close()

    async def _load(self, checkpoint: Path | None) -> int:
        for damage in self._folder.damaged:
            self._log.note(f"not resumed from a damaged checkpoint: {damage}")
        version = 0 if checkpoint is None else await self._learner.load(checkpoint.absolute())
        self._log.resume(self._folder.cut_records_after(version))
        if checkpoint is not None:
            self._log.checkpoint(checkpoint)
            self._log.note(f"resumed from {checkpoint}")
        return version
