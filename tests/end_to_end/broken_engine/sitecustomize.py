"""On the path of a run's processes: breaks the engine of one living rollout worker, from within.

Python imports this module in every process that starts. In the worker that `ENGINE_TO_BREAK` names, the forward
pass of its model raises as soon as the file `BREAK_FILE` is there. The file is removed first: one process breaks.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

WORKER_VARIABLE = "LEASH_WORKER"
"""As in core/remote.py, which would be a slow import in every process."""


def _break_when_told(file: Path) -> None:
    while not file.exists():
        time.sleep(0.1)
    try:
        file.unlink()
    except FileNotFoundError:  # another process was first
        return
    models: Any = sys.modules["vllm.model_executor.models.llama"]

    def forward(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("broken by the test")

    models.LlamaForCausalLM.forward = forward


if os.environ.get(WORKER_VARIABLE) == os.environ.get("ENGINE_TO_BREAK", "nobody"):
    threading.Thread(target=_break_when_told, args=(Path(os.environ["BREAK_FILE"]),), daemon=True).start()
