"""What the learner writes to disk: its whole state to go on from, and the policy as a Hugging Face model.

A checkpoint folder of the learner:

    policy/state/...        DeepSpeed's files: weights and optimizer state, one set a rank
    value_model/state/...   the same, where there is a value model
    learner.json            policy version and the KL controller's state
"""

import json
import shutil
from pathlib import Path
from typing import Any

from core.errors import UserError
from learner.config import LoRAConfig
from learner.engine import ZeroEngine
from learner.learner import Learner
from learner.lora import merged_parameters

TAG = "state"


def save(learner: Learner, folder: Path, *, rank: int) -> None:
    """Write the learner's state. All ranks must call. It is a checkpoint once the trainer renames the folder."""
    for name, engine in _engines(learner):
        engine.save(folder / name, TAG)
    if rank == 0:
        state = {"policy_version": learner.policy_version, "kl_controller": learner.kl_controller.state()}
        (folder / "learner.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def load(learner: Learner, folder: Path) -> None:
    """Go on from what `save` wrote. All ranks must call. Raises `UserError` for another shape of learner."""
    file = folder / "learner.json"
    if not file.is_file():
        raise UserError(f"{folder}: no learner.json, so this is not a checkpoint of a learner")
    for name, engine in _engines(learner):
        engine.load(folder / name, TAG)
    state = json.loads(file.read_text(encoding="utf-8"))
    learner.policy_version = state["policy_version"]
    learner.kl_controller.load(state["kl_controller"])


def save_model(learner: Learner, folder: Path, *, tokenizer_from: Path, rank: int) -> None:
    """The policy as a Hugging Face checkpoint with its tokenizer, whole or not at all. All ranks must call."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    if rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    save_network(learner.policy, learner.lora, learner.policy.module.model, unfinished, rank=rank)
    if rank != 0:
        return
    for file in tokenizer_from.iterdir():
        if file.name.startswith(
            ("tokenizer", "special_tokens", "vocab", "merges", "chat_template", "generation")
        ):
            shutil.copy2(file, unfinished / file.name)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def save_network(
    engine: ZeroEngine, lora: LoRAConfig | None, network: Any, folder: Path, *, rank: int = 0
) -> None:
    """An engine's full weights, adapters added in, with the configuration of a Hugging Face model."""
    weights = {}
    for name, parameter in merged_parameters(engine, lora):
        if rank == 0:
            weights[name] = parameter.to("cpu", copy=True)
    if rank == 0:
        network.save_pretrained(folder, state_dict=weights)


def _engines(learner: Learner) -> list[tuple[str, ZeroEngine]]:
    engines = [("policy", learner.policy)]
    if learner.value_model is not None:
        engines.append(("value_model", learner.value_model))
    return engines
