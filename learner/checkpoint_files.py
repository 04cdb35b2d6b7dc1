"""The files of a checkpoint: tensors and plain values on disk, written and read for DeepSpeed.

What is read is not trusted: a pickle may name tensors, plain values and a short list of classes, and is
refused, unrun, if it names anything else. A failed write is kept, not raised, because DeepSpeed's ranks meet
behind it: a rank that raised in between would leave the others waiting.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from core.errors import UserError

REMEDY = (
    "; it is damaged, or not of Leash's making: resume from an older checkpoint, or from a copy of this one"
)


def read_tensors(
    path: Path, classes: Sequence[type], *, map_location: Any = "cpu", peek: bool = False
) -> Any:
    """What `torch.save` wrote, if it holds tensors, plain values and the given classes only.

    `peek` leaves the tensors on disk. Raises `UserError` that names the file for anything else in it, and for
    a file that is damaged or missing.
    """
    try:
        with safe_globals(list(classes)):
            return torch.load(path, map_location=map_location, mmap=peek, weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}{REMEDY}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: does not hold tensors and plain values only, so it is not loaded{REMEDY}"
        ) from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise UserError(f"{path}: is not a whole file of torch's{REMEDY}") from error


class CheckpointFiles:
    """How DeepSpeed makes folders, writes and reads (the methods of its `CheckpointEngine`).

    files.failure = None
    engine.save_checkpoint(...)  # all ranks reach its end
    tell the other ranks files.failure
    """

    failure: str | None = None
    """The first write that failed, with its file; nothing is written after it."""

    def __init__(self, classes: Sequence[type]) -> None:
        self._classes = classes

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if self.failure is None:
            try:
                Path(path).mkdir(parents=True, exist_ok=exist_ok)
            except OSError as error:
                self.failure = f"could not write {path}: {error.strerror or error}"

    def create(self, info: Any) -> None:
        """A save begins."""

    def save(self, state_dict: Any, path: str) -> None:
        if self.failure is None:
            try:
                with open(path, "wb") as file:
                    torch.save(state_dict, file)
            except OSError as error:
                self.failure = f"could not write {path}: {error.strerror or error}"
            except RuntimeError as error:  # torch's, about the archive that it writes into the file
                self.failure = f"could not write {path}: {error}"

    def load(self, path: str, map_location: Any = None) -> Any:
        return read_tensors(Path(path), self._classes, map_location=map_location)

    def commit(self, info: Any) -> bool:
        """A save ends."""
        return True
