"""What the learner writes to disk: its whole state to go on from, and the policy as a Hugging Face model.

A checkpoint folder of the learner:

    policy/state/...        DeepSpeed's files: weights and optimizer state, one set a rank
    value_model/state/...   the same, where there is a value model
    learner.json            policy version, the KL controller's state, and the ranks and ZeRO stage that wrote it
    random-states.json      one a rank: where dropout goes on drawing
"""

import json
import shutil
from pathlib import Path
from typing import Any

from core.errors import UserError, WorkerError
from learner.config import LoRAConfig
from learner.engine import ZeroEngine
from learner.learner import Learner
from learner.lora import merged_parameters
from learner.process_group import all_gather, place_in_group, raise_together
from learner.random_state import random_state, seed_random_state, set_random_state

TAG = "state"


def save(learner: Learner, folder: Path, *, rank: int) -> None:
    """Write the learner's state. All ranks must call. It is a checkpoint once the trainer renames the folder.

    Raises `WorkerError` on every rank if one could not write; none is left waiting for it.
    """
    for name, engine in _engines(learner):
        engine.save(folder / name, TAG)
    random_states = all_gather([random_state()])
    failure = None
    if rank == 0:
        state = {
            "policy_version": learner.policy_version,
            "kl_controller": learner.kl_controller.state(),
            "shape": _shape(learner),
        }
        failure = _write(folder / "learner.json", json.dumps(state, indent=2))
        failure = failure or _write(folder / "random-states.json", json.dumps(random_states))
    raise_together(failure, WorkerError)


def load(learner: Learner, folder: Path) -> None:
    """Go on from what `save` wrote, maybe on other ranks or under another ZeRO stage. All ranks must call.

    On the same ones it goes on bit for bit, on others up to the rounding of sums that are taken in another order.
    A rank with no random state in the checkpoint starts one. Raises `UserError` on all ranks for a learner of other
    networks, and for files that are damaged or hold anything but tensors and plain values.
    """
    state: Any = None
    failure = None
    try:
        state, random_states = _read(folder / "learner.json"), _read(folder / "random-states.json")
    except UserError as error:
        failure = str(error)
    raise_together(failure, UserError)
    saved, own = state["shape"], _shape(learner)
    if saved["networks"] != own["networks"]:
        raise UserError(
            f"{folder}: holds {saved['networks']}, and this learner has {own['networks']}; resume with the "
            "algorithm that it was started with"
        )
    for name, engine in _engines(learner):
        if saved == own:
            engine.load(folder / name, TAG)
        else:
            engine.load_resharded(
                folder / name, TAG, zero_stage=saved["zero_stage"], world_size=saved["world_size"]
            )
    learner.policy_version = state["policy_version"]
    learner.kl_controller.load(state["kl_controller"])
    rank, _ = place_in_group()
    if rank < len(random_states):
        set_random_state(random_states[rank])
    else:
        seed_random_state(learner.seed, learner.policy_version, rank)


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


def _shape(learner: Learner) -> dict[str, Any]:
    """How a learner writes a checkpoint: who reads one has to know."""
    return {
        "world_size": place_in_group()[1],
        "zero_stage": learner.policy.zero_stage,
        "networks": [name for name, _ in _engines(learner)],
    }


def _write(file: Path, text: str) -> str | None:
    """What went wrong, for the other ranks to hear of."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        return f"could not write {file}: {error.strerror or error}"
    return None


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}), so this is not a whole checkpoint of a learner"
        ) from error
