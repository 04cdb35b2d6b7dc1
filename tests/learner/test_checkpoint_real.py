"""Checkpoints of real ranks that were tampered with, or that could not be written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.learner.checkpoint_rank import FAULTS, HARMLESS, MARKER
from tests.learner.learner_rank import VOCABULARY
from tests.learner.ranks import facts, run_ranks
from tests.tiny_models import build_tiny_model, build_tiny_scalar_model

pytestmark = pytest.mark.real

PLANTED = {1: ("planted-0", "planted-1"), 2: ("planted-2", "planted-3")}
SOON_S = 20
"""Far less than the deadline of the group, at which a rank that waits for another would give up."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all scenarios have written to."""
    folder = tmp_path_factory.mktemp("checkpoints")
    build_tiny_model(folder / "policy", vocabulary=VOCABULARY)
    build_tiny_scalar_model(folder / "value", vocabulary=VOCABULARY)
    module = "tests.learner.checkpoint_rank"
    run_ranks(folder, 1, PLANTED[1], module=module)
    run_ranks(folder, 2, (*PLANTED[2], "other-shapes", "failing"), module=module)
    return folder


@pytest.mark.parametrize(
    ("name", "rank", "num_files"),
    [
        ("planted-0-world1", 0, 1),
        ("planted-1-world1", 0, 2),
        *(("planted-2-world2", rank, 3) for rank in (0, 1)),
        *(("planted-3-world2", rank, 4) for rank in (0, 1)),
    ],
)
def test_a_malicious_file_is_refused_by_name_on_every_rank(
    results: Path, name: str, rank: int, num_files: int
) -> None:
    for kind in ("raised", "raised_elsewhere"):  # by ranks of the ZeRO stage that saved, and of another
        raised = facts(results, name, rank)[kind]
        assert len(raised) == num_files
        for file, text in raised.items():
            assert text.startswith("UserError: learner rank ")
            assert f"{file}: does not hold tensors and plain values only" in text
    assert list(results.glob(f"*{MARKER}")) == []


@pytest.mark.parametrize(
    "name", ["planted-0-world1", "planted-1-world1", "planted-2-world2", "planted-3-world2"]
)
def test_nothing_is_read_but_tensors_and_plain_values(results: Path, name: str) -> None:
    """And the files that were replaced load once they are themselves again."""
    reads = facts(results, name)["reads"]
    assert set(reads) == {True}
    assert len(reads) >= 3
    saved, *loaded = (
        load_file(results / f"{kind}.safetensors") for kind in (f"{name}-saved", name, f"{name}-elsewhere")
    )
    for weights in loaded:
        assert [key for key in saved if not torch.equal(saved[key], weights[key])] == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_checkpoint_of_another_learner_is_refused_on_every_rank(results: Path, rank: int) -> None:
    raised = facts(results, "other-shapes-world2", rank)["raised"]
    assert all(text.startswith("UserError: ") for text in raised.values())
    for what, problem in {
        "networks": "holds ['policy'], and this learner has ['policy', 'value_model']",
        "parameters": "policy/state: is of another network, without model.",
        "files": "policy/state: no files of DeepSpeed's in it",
        "random states": "random-states.json: cannot be read",
    }.items():
        assert problem in raised[what]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_write_that_fails_at_one_rank_is_raised_at_all_of_them(
    results: Path, fault: str, rank: int
) -> None:
    found = facts(results, "failing-world2", rank)
    file, _ = FAULTS[fault]
    failed = "0, 1" if fault == "no-tag-folder" else int("rank_1_" in file)
    assert found["raised"][fault].startswith(f"WorkerError: learner rank {failed}: could not write ")
    assert str(results / f"failing-world2-{fault}" / file) in found["raised"][fault]
    assert found["seconds"][fault] < SOON_S


@pytest.mark.parametrize("rank", [0, 1])
def test_after_failed_saves_the_ranks_save_and_train_on(results: Path, rank: int) -> None:
    found = facts(results, "failing-world2", rank)
    assert [found["raised"][name] for name in HARMLESS] == [""]
    assert found["version"] == 1
    assert (results / "failing-world2-checkpoint" / "learner.json").is_file()
