"""One rank that loads a model, whole and in shards, and writes down what it took.

python -m tests.learner.loading_rank RANK WORLD_SIZE PORT FOLDER SCENARIO...
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Literal

import torch

from core.errors import UserError
from core.messages import Int32s
from core.models import load_policy
from core.packing import pack_row
from learner.config import LearnerConfig
from learner.engine import ZeroEngine, sharded_loading
from tests.fakes import int32s
from tests.learner.learner_rank import Rank, Scenario, main

TOKENS: Int32s = int32s(*range(5, 25))


class PeakMemory:
    """The most private memory that this process had inside `with`, beyond what it had before, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self.num_bytes, self._before, self._is_over = 0, _private_bytes(), False
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._watch.join()

    def _look(self) -> None:
        while not self._is_over:
            self.num_bytes = max(self.num_bytes, _private_bytes() - self._before)
            time.sleep(0.001)


def _private_bytes() -> int:
    """Without the files that are mapped."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def load(stage: Literal[0, 3]) -> Scenario:
    """Stage 0 loads the whole model, stage 3 its shards; then what the model says."""

    def scenario(process: Rank, name: str) -> None:
        config = LearnerConfig(world_size=process.world_size, zero_stage=stage)
        with PeakMemory() as peak, sharded_loading(config, dtype="float32"):
            module = load_policy(process.folder / "large", "float32")
        engine = ZeroEngine(module, config, dtype="float32")
        with torch.no_grad():
            logprobs = engine(pack_row([(TOKENS, TOKENS > 9)])).tolist()
        digests = {
            key: weight.double().sum().item() for key, weight in engine.full_parameters(lambda _: True)
        }
        _write(process, name, {"peak_bytes": peak.num_bytes, "logprobs": logprobs, "sums": digests})

    return scenario


def refuse(process: Rank, name: str) -> None:
    """A model whose weights have other shapes than its config says: rank 0 alone sees it."""
    config = LearnerConfig(world_size=process.world_size, zero_stage=3)
    said = ""
    try:
        with sharded_loading(config, dtype="float32"):
            load_policy(process.folder / "wrong", "float32")
    except UserError as error:
        said = str(error)
    _write(process, name, {"said": said})


def _write(process: Rank, name: str, found: dict[str, Any]) -> None:
    file = process.folder / f"{name}-{process.rank}.json"
    file.write_text(json.dumps(found), encoding="utf-8")


SCENARIOS: dict[str, Scenario] = {"load-0": load(0), "load-3": load(3), "refuse": refuse}

if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    main(SCENARIOS)
