"""What the tests of the ledger share: groups that differ, journals, ledgers of two groups a step, and a disk that
forgets."""

import os
import shutil
from itertools import count
from pathlib import Path

from core.messages import RolloutGroup
from orchestration.ledger.journal import Disk, Journal
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.records import Begun, Committed, Record, RolledBack, pack_group, unpack
from orchestration.ledger.segments import Leftovers, leftovers_of, records_of, survey
from orchestration.run_folder import LEDGER_FOLDER
from tests.fakes import make_completion, make_group, make_prompt, make_rollout

SALTS = count()


def fresh_group(number: int, *, num_rollouts: int = 2) -> RolloutGroup:
    """A group as it would be sampled for this number, and unlike every other: its scores are its own."""
    salt = next(SALTS)
    prompt = make_prompt(1, 2, text=f"prompt {number}", rating=salt)
    return make_group(
        f"group-{number}",
        [
            make_rollout(
                make_completion(5, index, prompt=prompt, behavior=[-0.1, -1 / 3]), score=salt + index / 4
            )
            for index in range(num_rollouts)
        ],
    )


def written(folder: Path, *records: bytes, disk: Disk | None = None) -> Journal:
    """A journal with these records, synced."""
    journal = Journal.open(folder, disk=disk)
    for record in records:
        journal.append(record)
    journal.sync()
    return journal


def read(folder: Path) -> list[bytes]:
    """What is read, by a reader who takes nothing over."""
    return [payload for segment in survey(folder) for _, payload in records_of(segment)]


def ignored(folder: Path) -> list[Leftovers]:
    return [leftovers_of(segment) for segment in survey(folder)]


def opened(
    run: Path,
    committed_step: int = 0,
    *,
    groups_per_step: int = 2,
    journals_groups: bool = True,
    disk: Disk | None = None,
) -> Ledger:
    return Ledger.open(
        run,
        committed_step=committed_step,
        groups_per_step=groups_per_step,
        journals_groups=journals_groups,
        disk=disk,
    )


def acknowledged(ledger: Ledger, *numbers: int) -> list[RolloutGroup]:
    """Sampled for these numbers, and accepted."""
    groups = [fresh_group(number) for number in numbers]
    for number, group in zip(numbers, groups, strict=True):
        assert ledger.acknowledge(ledger.lease(number), group)
    return groups


def stepped(ledger: Ledger, *steps: int) -> list[RolloutGroup]:
    """Steps of two groups, acknowledged and begun; all of their groups."""
    groups = []
    for step in steps:
        groups += acknowledged(ledger, 2 * step - 2, 2 * step - 1)
        ledger.begin_step(step, {2 * step - 2: groups[-2], 2 * step - 1: groups[-1]})
    return groups


def records(run: Path) -> list[Record]:
    return [unpack(payload) for segment in survey(run / LEDGER_FOLDER) for _, payload in records_of(segment)]


def steps(run: Path) -> list[Record]:
    return [record for record in records(run) if isinstance(record, Begun | Committed | RolledBack)]


def holds(ledger: Ledger, number: int, group: RolloutGroup) -> bool:
    kept = ledger.durable(number)
    return kept is not None and pack_group(kept) == pack_group(group)


class Crash(Exception):
    """The process died in this call."""


class CrashingDisk(Disk):
    """Dies in the call with number `dies_at` (in the middle of it, if it `tears`), and does nothing after that.

    It syncs nothing for real, and remembers what it should have: `power_off` takes away the rest.
    """

    def __init__(self, *, dies_at: int | None = None, tears: bool = False) -> None:
        self.num_calls = 0
        self.dies_at = dies_at
        self._tears = tears
        self._paths: dict[int, Path] = {}
        self._num_synced: dict[Path, int] = {}
        self._new_names: list[Path] = []

    def make_folder(self, path: Path) -> None:
        self._call()
        if not path.exists():
            self._new_names.append(path)
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self._call()
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._num_synced[path] = 0
        self._new_names.append(path)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> None:
        try:
            self._call()
        except Crash:
            if self._tears and self.num_calls == self.dies_at:
                super().write(descriptor, data[: len(data) // 2])
            raise
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._call()
        self._num_synced[self._paths[descriptor]] = os.fstat(descriptor).st_size

    def sync_path(self, path: Path) -> None:
        self._call()
        if path.is_dir():
            self._new_names = [name for name in self._new_names if name.parent != path]
        else:
            self._num_synced[path] = path.stat().st_size

    def rename(self, path: Path, target: Path) -> None:
        """As a checkpoint is made whole: after a sync of its own, and on disk when it returns."""
        self._call()
        path.rename(target)

    def restart(self) -> None:
        """A new process: calls work again."""
        self.dies_at = None
        for descriptor in list(self._paths):
            self.close(descriptor)

    def close(self, descriptor: int) -> None:
        if self._paths.pop(descriptor, None):
            super().close(descriptor)

    def power_off(self, *, kept: float, zeros: bool, forgets_names: bool) -> None:
        """The machine dies: of what was not synced this fraction is left, with a hole behind it if `zeros`."""
        for path, num_synced in self._num_synced.items():
            num_bytes = path.stat().st_size
            if num_bytes > num_synced:
                os.truncate(path, num_synced + int(kept * (num_bytes - num_synced)))
                if zeros:
                    os.truncate(path, num_bytes)
            self._num_synced[path] = path.stat().st_size
        if forgets_names:
            for name in self._new_names:
                if name.is_dir():
                    shutil.rmtree(name)
                else:
                    name.unlink(missing_ok=True)
            self._num_synced = {path: size for path, size in self._num_synced.items() if path.exists()}
        self._new_names = []

    def _call(self) -> None:
        self.num_calls += 1
        if self.dies_at is not None and self.num_calls >= self.dies_at:
            raise Crash
