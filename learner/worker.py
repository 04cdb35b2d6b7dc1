"""What runs in the learner's processes: one rank each. The driver's end of them is `learner/group.py`."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import ModelConfig
from core.decoding import Decoding
from core.hub import ModelSource, model_folder
from core.messages import Completion, Demonstration, Float32s, Int32s, RolloutGroup
from core.process_state import answer_with_stacks
from core.remote import node_address, node_id, node_interface
from core.stream import SeededStream
from core.versions import Versions, require_versions, versions
from core.weights import WeightManifest
from core.worker_report import WorkerReport, own_report
from learner.algorithm_config import ActorCriticConfig, AlgorithmConfig
from learner.config import KLConfig, LearnerConfig, LiveLearnerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingTexts:
    """Texts whose likelihood is part of every update (PPO-ptx)."""

    datasets: Sequence[Sequence[Demonstration]]
    weights: Sequence[float]
    """Share of each dataset."""
    coef: float
    texts_per_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSetup:
    """What a rank needs to build its share of the learner."""

    model_source: ModelSource
    model: ModelConfig
    value_model_source: ModelSource | None
    """The reward model that the value model starts from; None: there is no value model, or the policy is it."""
    config: LearnerConfig
    algorithm: AlgorithmConfig
    kl: KLConfig
    decoding: Decoding
    max_new_tokens: int
    seed: int
    pretraining: PretrainingTexts | None
    num_steps: int
    """Steps of the whole training, which the learning-rate schedule is laid over."""
    push_adapters: bool
    """To the engines instead of all weights."""
    probe_token_ids_T: Int32s
    max_probe_gap: float
    deadline_s: float
    driver_versions: Versions = field(default_factory=versions)
    """Of the process that makes this, which is the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProcess:
    """Where the process of a rank is."""

    node: str
    """Ray's id of its node."""
    pid: int
    stacks: int
    """Descriptor that it writes its stacks to (`core/process_state.py`)."""


class LearnerWorker:
    """One rank. Torch and DeepSpeed are imported here and not by the driver."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._stacks = answer_with_stacks()

    def identity(self) -> RankProcess:
        """Where this rank's process is, for who looks at it once it no longer answers."""
        return RankProcess(node=node_id(), pid=os.getpid(), stacks=self._stacks)

    def rendezvous(self) -> tuple[str, int]:
        """An address and a free port, where this rank (0) can wait for the others."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return node_address(), probe.getsockname()[1]

    def start(self, setup: LearnerSetup, address: str, port: int, collective_s: float) -> None:
        """Join the group and load the networks. `collective_s`: longest wait for the other ranks.

        Raises `UserError` on a node that runs other versions, lacks the GPU or cannot get a model.
        """
        require_versions(setup.driver_versions, {node_address(): versions()})
        from core.device import device_of  # heavy, see below

        os.environ["DS_ACCELERATOR"] = device_of("learner", setup.config.resources)
        # Left to itself gloo tells other ranks the address that the host's name has here, which is often 127.0.0.1.
        if interface := node_interface():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        # Before the group is joined, whose ranks have a deadline for each other.
        node, value_source = node_address(), setup.value_model_source
        model_path = model_folder(setup.model_source, node=node)
        value_model_path = None if value_source is None else model_folder(value_source, node=node)
        # Heavy imports stay out of the driver, which only needs this module's handles.
        import torch

        from core.models import check_same_tokenizer, load_policy, load_scalar_model, load_with_scalar_head
        from learner.engine import sharded_loading
        from learner.learner import Learner
        from learner.process_group import join_group
        from learner.weight_push import WeightPush

        torch.set_num_threads(setup.config.resources.threads)
        world_size = setup.config.world_size
        join_group(
            rank=self._rank, world_size=world_size, address=address, port=port, deadline_s=collective_s
        )
        dtype = setup.model.dtype
        with sharded_loading(setup.config, dtype=dtype):
            module = load_policy(model_path, dtype)
        policy = self._engine(module, setup)
        value_model = None
        if isinstance(setup.algorithm, ActorCriticConfig):
            starts_from = value_model_path or model_path
            check_same_tokenizer(model_path, starts_from)
            load = load_scalar_model if value_model_path else load_with_scalar_head
            with sharded_loading(setup.config, dtype=dtype):
                value_module = load(starts_from, dtype)
            value_model = self._engine(value_module, setup)
        self._setup, self._model_path = setup, model_path
        self._learner = Learner(
            rank=self._rank,
            world_size=world_size,
            config=setup.config,
            algorithm=setup.algorithm,
            kl=setup.kl,
            policy=policy,
            value_model=value_model,
            decoding=setup.decoding,
            max_new_tokens=setup.max_new_tokens,
            seed=setup.seed,
            num_steps=setup.num_steps,
            pretraining=self._pretraining(setup, policy),
        )
        self._push = WeightPush(
            self._learner,
            rank=self._rank,
            node=node_id(),
            adapters_only=setup.push_adapters,
            probe_token_ids_T=setup.probe_token_ids_T,
            max_probe_gap=setup.max_probe_gap,
        )

    def _pretraining(self, setup: LearnerSetup, policy: Any) -> Any:
        from learner.pretraining import Pretraining  # heavy, see `start`

        if setup.pretraining is None:
            return None
        return Pretraining(
            SeededStream(setup.pretraining.datasets, seed=setup.seed, weights=setup.pretraining.weights),
            coef=setup.pretraining.coef,
            texts_per_step=setup.pretraining.texts_per_step,
            policy=policy,
            rank=self._rank,
            world_size=setup.config.world_size,
            token_budget=setup.config.token_budget,
        )

    def _engine(self, module: Any, setup: LearnerSetup) -> Any:
        from learner.engine import ZeroEngine  # heavy, see `start`
        from learner.lora import add_adapter  # heavy, see `start`

        if setup.config.lora is not None:
            add_adapter(module, setup.config.lora, dropout=setup.config.dropout)
        return ZeroEngine(module, setup.config, dtype=setup.model.dtype)

    def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        started = time.perf_counter()
        metrics = self._learner.train_step(groups)
        metrics["learn_s"] = time.perf_counter() - started
        config = self._setup.config
        if config.peak_tflops is not None:
            flops = self._learner.model_flops(groups, metrics["num_updates"])
            peak = config.peak_tflops * 1e12 * config.world_size
            metrics["mfu_fraction"] = flops / metrics["learn_s"] / peak
        return metrics

    def reference_logprobs(self, texts: Sequence[Completion | Demonstration]) -> list[Float32s]:
        return self._learner.reference_logprobs(texts)

    def mean_nll(self, texts: Sequence[Demonstration]) -> float:
        return self._learner.mean_nll(texts)

    def pack_weights(self) -> tuple[WeightManifest | None, dict[str, float]]:
        return self._push.pack()

    def configure(self, config: LiveLearnerConfig) -> None:
        self._learner.configure(config)

    def save(self, folder: Path) -> None:
        from learner.checkpoint import save  # heavy, see `start`

        save(self._learner, folder, rank=self._rank)

    def load(self, folder: Path) -> int:
        """The policy version that training goes on from."""
        from learner.checkpoint import load  # heavy, see `start`

        load(self._learner, folder)
        return self._learner.policy_version

    def save_model(self, folder: Path) -> None:
        from learner.checkpoint import save_model  # heavy, see `start`

        save_model(self._learner, folder, tokenizer_from=self._model_path, rank=self._rank)

    def report(self) -> WorkerReport:
        return own_report()

    def close(self) -> None:
        """Leave the process group and give back shared memory."""
        from learner.process_group import leave_group  # heavy, see `start`

        self._push.close()
        leave_group()
