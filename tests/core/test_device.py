"""Who computes on a GPU. None is needed here."""

import pytest
import torch

from core.config import Resources
from core.device import device_of
from core.errors import UserError


def test_who_asked_for_no_gpu_gets_none_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("learner", Resources()) == "cpu"
    assert device_of("learner", Resources(num_gpus=0.25)) == "cuda"


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [
        (None, "is built for CPUs; install the GPU builds"),
        ("13.0", "finds none that CUDA 13.0 can use; look at the driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError, match=rf"^reference\.resources\.num_gpus = 1: torch \S+ on \S+ {reason}"):
        device_of("reference", Resources(num_gpus=1.0))
