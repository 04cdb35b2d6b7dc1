"""What is written to a checkpoint, and what is refused when it is read."""

import pickle
import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from learner.checkpoint_files import CheckpointFiles, read_tensors


class Known:
    """A class that is allowed in a file."""

    def __init__(self, value: int) -> None:
        self.value = value


class Malicious:
    """Unpickling it opens a file for writing."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self._marker), "w")


STATE = {"module": {"weight_BT": torch.arange(6.0).view(2, 3)}, "step": 3, "name": "adam", "none": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.pt"


@pytest.mark.parametrize("peek", [False, True])
def test_tensors_plain_values_and_known_classes_come_back(file: Path, peek: bool) -> None:
    files = CheckpointFiles([Known])
    files.save(STATE | {"known": Known(7)}, str(file))
    assert files.failure is None
    state = read_tensors(file, [Known], peek=peek)
    assert torch.equal(state["module"]["weight_BT"], STATE["module"]["weight_BT"])  # type: ignore[index]
    assert (state["step"], state["name"], state["none"], state["known"].value) == (3, "adam", None, 7)
    assert files.load(str(file))["step"] == 3


def new_format(content: Any, file: Path) -> None:
    torch.save(content, file)


def plain_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


def old_format(content: Any, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("peek", [False, True])
@pytest.mark.parametrize("write", [new_format, old_format, plain_pickle])
def test_a_pickle_that_would_do_something_is_refused_undone(
    file: Path, tmp_path: Path, write: Callable[[Any, Path], None], peek: bool
) -> None:
    write({"module": Malicious(tmp_path / "marker")}, file)
    refused = f"{file}: .* resume from an older checkpoint"
    with pytest.raises(UserError, match=refused):
        read_tensors(file, [Known], peek=peek)
    with pytest.raises(UserError, match=refused):
        CheckpointFiles([Known]).load(str(file))
    assert not (tmp_path / "marker").exists()
    with suppress(RuntimeError):  # about a pickle that is not torch's, when it has been run
        torch.load(file, weights_only=False)  # or this test would show nothing
    assert (tmp_path / "marker").exists()


def test_an_unknown_class_is_refused_and_stays_so_after_a_file_that_may_hold_it(file: Path) -> None:
    torch.save({"known": Known(7)}, file)
    for classes, refused in (([], True), ([Known], False), ([], True)):
        if refused:
            with pytest.raises(UserError, match="does not hold tensors and plain values only"):
                read_tensors(file, classes)
        else:
            read_tensors(file, classes)


def test_damage_is_told_as_what_it_is(file: Path) -> None:
    """Cut off or overwritten anywhere, a file is read or refused; no other error comes through."""
    with pytest.raises(UserError, match=f"{file}: cannot be read: No such file"):
        read_tensors(file, [])
    torch.save(STATE, file)
    whole = file.read_bytes()
    generator = random.Random(0)
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about pickles of odd protocols
        for _ in range(300):
            place = generator.randrange(len(whole))
            changed = whole[:place] + generator.randbytes(8) + whole[place + 8 :]
            file.write_bytes(changed if generator.random() < 0.7 else whole[:place])
            try:
                read_tensors(file, [])
                outcomes.add("read")
            except UserError as error:
                outcomes.add(str(error).split(";")[0])
    assert {"read", f"{file}: is not a whole file of torch's"} <= outcomes
    assert all(outcome == "read" or outcome.startswith(f"{file}: ") for outcome in outcomes)


def test_the_first_failed_write_is_kept_and_nothing_is_written_after_it(tmp_path: Path) -> None:
    files = CheckpointFiles([])
    files.makedirs(str(tmp_path / "a/b"), exist_ok=True)
    files.save(STATE, str(tmp_path / "a/b/first.pt"))
    assert files.failure is None
    files.save({"weight": torch.zeros(1000)}, "/dev/full")
    assert files.failure == "could not write /dev/full: No space left on device"
    files.save(STATE, str(tmp_path / "second.pt"))
    files.makedirs(str(tmp_path / "c"))
    assert files.failure == "could not write /dev/full: No space left on device"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "first.pt"]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda files, place: files.makedirs(f"{place}/file/below"), "file/below: Not a directory"),
        (lambda files, place: files.save(STATE, f"{place}/none/state.pt"), "state.pt: No such file"),
        (lambda files, place: files.save(STATE, str(place)), "Is a directory"),
    ],
)
def test_a_folder_that_cannot_be_written_is_no_exception(
    tmp_path: Path, write: Callable[[CheckpointFiles, Path], None], said: str
) -> None:
    (tmp_path / "file").touch()
    files = CheckpointFiles([])
    write(files, tmp_path)
    assert files.failure is not None
    assert str(tmp_path) in files.failure
    assert said in files.failure
