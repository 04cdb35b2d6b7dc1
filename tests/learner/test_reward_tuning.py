"""How the processes that tune a reward model are started. What they do: `test_reward_tuning_real.py`."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from learner import reward_tuning
from learner.config import RewardModelConfig, RewardTuningConfig
from learner.rankings import RankedTexts, draw


@pytest.mark.parametrize("before", [None, "0,1"])
def test_ranks_see_no_gpu_and_who_starts_them_sees_what_it_saw(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """They would all meet on the first one, with their texts still in the host's memory."""
    seen: list[str | None] = []

    class FakeProcess:
        def __init__(self, **options: Any) -> None: ...

        def start(self) -> None:
            seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

        def terminate(self) -> None: ...

        def join(self) -> None: ...

    class End:
        def close(self) -> None: ...

        def recv(self) -> dict[str, float]:
            return {"tuning_loss_first": 1.0, "tuning_loss_last": 0.5}

    class Context:
        def Pipe(self, *, duplex: bool) -> tuple[End, End]:
            return End(), End()

        Process = FakeProcess

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    monkeypatch.setattr(reward_tuning, "get_context", lambda method: Context())
    config = RewardModelConfig(tuning=RewardTuningConfig(world_size=2))
    texts = RankedTexts(
        token_ids=[], starts=[], ratings_S=torch.zeros(0), rankings=draw(torch.tensor([0.0, 1.0]), config)
    )
    reward_tuning.tune_on_ranks(Path("unread"), texts, config, report=lambda line: None)
    assert seen == ["", ""]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
