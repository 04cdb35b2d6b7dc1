"""One rank of a real learner, as a process of its own: runs named scenarios and writes down what came out.

    python -m tests.learner.learner_rank RANK WORLD_SIZE PORT FOLDER SCENARIO...

The tests start one process a rank and compare the files in FOLDER. Several scenarios share a process, because
importing DeepSpeed takes longer than they do.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from core.decoding import Decoding
from core.errors import NonFiniteError
from core.messages import Completion, Demonstration, Prompt, Rollout, RolloutGroup, VersionSpan
from core.models import load_policy, load_scalar_model
from core.packing import pack_row
from core.stream import SeededStream
from learner import checkpoint
from learner.algorithm_config import (
    A2CConfig,
    ActorCriticConfig,
    AlgorithmConfig,
    DPOConfig,
    GRPOConfig,
    PPOConfig,
    REBELConfig,
    ReinforceConfig,
    RLOOConfig,
    RPOConfig,
    SFTConfig,
)
from learner.config import KLConfig, LearnerConfig
from learner.engine import ZeroEngine, sharded_loading
from learner.learner import Learner
from learner.lora import add_adapter
from learner.pretraining import Pretraining
from learner.process_group import join_group, leave_group

VOCABULARY = 512
GROUPS, GROUP_SIZE, LONGEST = 5, 3, 40
DEADLINE_S = 120.0
RLOO = RLOOConfig(kind="rloo")
PPO = PPOConfig(kind="ppo", value_learning_rate=1e-3)
KL = KLConfig(kl_coef=0.1, controller="adaptive", kl_target=1.0, horizon=100)

LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 8.0}}
METHODS: dict[str, tuple[AlgorithmConfig, dict[str, Any]]] = {
    "grpo": (GRPOConfig(kind="grpo"), {"kl": KLConfig(placement="loss", estimator="k3", kl_coef=0.1)}),
    "dr-grpo": (GRPOConfig(kind="grpo", scale_by_std=False, aggregation="constant"), {}),
    "dapo": (
        GRPOConfig(kind="grpo", aggregation="token", clip_range_high=0.28, overlong_buffer_tokens=8),
        {"kl": KLConfig(kl_coef=0.0)},
    ),
    "gspo": (
        GRPOConfig(kind="grpo", ratio="sequence", clip_range_low=0.2, clip_range_high=0.2, dual_clip=3.0),
        {},
    ),
    "reinforce": (ReinforceConfig(kind="reinforce++", importance_sampling="token", entropy_coef=0.01), {}),
    "importance": (RLOOConfig(kind="rloo", importance_sampling="sequence", max_approx_kl=0.5), {}),
    "exact-kl-reward": (PPOConfig(kind="ppo"), {"kl": KLConfig(estimator="exact"), **LORA}),
    "exact-kl-loss": (
        RLOOConfig(kind="rloo"),
        {"kl": KLConfig(placement="loss", estimator="exact", direction="forward"), **LORA},
    ),
    "a2c": (A2CConfig(kind="a2c", value_learning_rate=1e-3, entropy_coef=0.01), {}),
    "ppo-ptx": (PPO, {"pretraining_coef": 0.5}),
    "minibatches": (RLOOConfig(kind="rloo", num_minibatches=2), {}),
    "epochs": (PPOConfig(kind="ppo", value_learning_rate=1e-3, num_epochs=2), {}),
    "sft": (SFTConfig(kind="sft"), {}),
    "best-of-prompt": (SFTConfig(kind="sft", top_k=1), {}),
    "best-of-step": (SFTConfig(kind="sft", top_k=4, top_k_of="step"), {}),
    "dpo": (DPOConfig(kind="dpo", nll_coef=0.1, weight_by_reward=True), {}),
    "ipo": (DPOConfig(kind="dpo", variant="ipo"), {}),
    "conservative": (DPOConfig(kind="dpo", variant="conservative", label_smoothing=0.2), {}),
    "rpo": (RPOConfig(kind="rpo"), {}),
    "rebel": (REBELConfig(kind="rebel"), {}),
}
"""Every method beside RLOO and PPO, with the options that change what is computed."""

RESHARDED: dict[str, tuple[AlgorithmConfig, dict[str, Any]]] = {
    "rloo": (RLOO, {}),
    "ppo": (PPO, {}),
    "lora": (RLOO, LORA),
    "bfloat16": (RLOO, {"dtype": "bfloat16"}),
}
OFFLOADED = {
    **{f"optimizer-{stage}": (stage, {"offload": "optimizer"}) for stage in (1, 2, 3)},
    "parameters-3": (3, {"offload": "parameters"}),
}
"""What is held in the host's memory, under which ZeRO stage."""
SOURCES = [f"{stage}-world{world_size}" for stage in range(4) for world_size in (1, 2, 3)]
"""ZeRO stage and ranks that wrote a checkpoint."""

Scenario = Callable[["Rank", str], None]


class Rank:
    """What the scenarios of a process share: who it is, and where the models are."""

    def __init__(self, rank: int, world_size: int, folder: Path) -> None:
        self.rank = rank
        self.world_size = world_size
        self.folder = folder
        self._policy = load_policy(folder / "policy", "float32").eval()

    def learner(
        self,
        zero_stage: int,
        algorithm: AlgorithmConfig,
        *,
        token_budget: int = 256,
        kl: KLConfig = KL,
        pretraining_coef: float = 0.0,
        dtype: str = "float32",
        **keys: Any,
    ) -> Learner:
        config = LearnerConfig.model_validate(
            {
                "world_size": self.world_size,
                "zero_stage": zero_stage,
                "learning_rate": 1e-3,
                "token_budget": token_budget,
                **keys,
            }
        )
        value_model = None
        if isinstance(algorithm, ActorCriticConfig):
            with sharded_loading(config, dtype=dtype):
                value_module = load_scalar_model(self.folder / "value", dtype)
            value_model = ZeroEngine(value_module, config, dtype=dtype)
        with sharded_loading(config, dtype=dtype):
            policy = load_policy(self.folder / "policy", dtype)
        if config.lora is not None:
            torch.manual_seed(0)
            add_adapter(policy, config.lora, dropout=config.dropout)
        engine = ZeroEngine(policy, config, dtype=dtype)
        pretraining = None
        if pretraining_coef:
            pretraining = Pretraining(
                SeededStream([self.texts(7)], seed=0),
                coef=pretraining_coef,
                texts_per_step=5,
                policy=engine,
                rank=self.rank,
                world_size=self.world_size,
                token_budget=token_budget,
            )
        return Learner(
            rank=self.rank,
            world_size=self.world_size,
            config=config,
            algorithm=algorithm,
            kl=kl,
            policy=engine,
            value_model=value_model,
            decoding=Decoding(),
            max_new_tokens=LONGEST,
            seed=0,
            num_steps=100,
            pretraining=pretraining,
        )

    def texts(self, count: int) -> list[Demonstration]:
        """Made-up human texts, the same on every rank."""
        rollouts = [
            rollout
            for number in range(count)
            for rollout in self._group(f"text-{number}", np.random.default_rng((77, number))).rollouts[:1]
        ]
        return [
            Demonstration(
                prompt=rollout.completion.prompt,
                token_ids_T=rollout.completion.token_ids_T,
                sampled_T=rollout.completion.sampled_T,
                text="",
                score=0.0,
            )
            for rollout in rollouts
        ]

    def groups(self, step: int) -> list[RolloutGroup]:
        """The same rollouts on every rank: completions of 1 to 40 tokens, sampled a little off the policy."""
        generator = np.random.default_rng(step)
        return [self._group(f"{step}-{number}", generator) for number in range(GROUPS)]

    def _group(self, group_id: str, generator: np.random.Generator) -> RolloutGroup:
        prompt_ids = generator.integers(3, VOCABULARY, generator.integers(1, 8)).astype(np.int32)
        prompt = Prompt(prompt_id=group_id, text="", token_ids=prompt_ids)
        return RolloutGroup(
            group_id=group_id,
            rollouts=tuple(self._rollout(f"{group_id}-{i}", prompt, generator) for i in range(GROUP_SIZE)),
        )

    def _rollout(self, name: str, prompt: Prompt, generator: np.random.Generator) -> Rollout:
        num_sampled = int(generator.integers(1, LONGEST + 1))
        sampled = generator.integers(3, VOCABULARY, num_sampled).astype(np.int32)
        token_ids = np.concatenate([prompt.token_ids, sampled])
        sampled_T = np.arange(len(token_ids)) >= len(prompt.token_ids)
        logprobs_T = np.zeros(len(token_ids), dtype=np.float32)
        with torch.no_grad():
            logprobs_T[sampled_T] = self._policy(pack_row([(token_ids, sampled_T)])).numpy()

        def nearby(scale: float) -> Any:
            return (logprobs_T + sampled_T * generator.normal(0, scale, len(token_ids))).astype(np.float32)

        completion = Completion(
            request_id=name,
            prompt=prompt,
            token_ids_T=token_ids,
            sampled_T=sampled_T,
            behavior_logprobs_T=nearby(0.15),
            version_spans=(VersionSpan(policy_version=0, start=0, stop=num_sampled),),
            text="",
            truncated=False,
        )
        score = float(generator.normal())
        return Rollout(
            completion=completion, reference_logprobs_T=nearby(0.3), rewards={"r": score}, score=score
        )

    def base_logprobs(self, text: Demonstration) -> Any:
        """[T]: under the model that training starts from; 0 on the prompt."""
        logprobs_T = np.zeros(len(text.token_ids_T), dtype=np.float32)
        with torch.no_grad():
            row = pack_row([(text.token_ids_T, text.sampled_T)])
            logprobs_T[text.sampled_T] = self._policy(row).numpy()
        return logprobs_T

    def write(self, name: str, learner: Learner, **facts: Any) -> None:
        """All weights and some facts of a scenario; all ranks call, one writes."""
        weights = _weights(learner)
        if self.rank == 0:
            save_file(weights, self.folder / f"{name}.safetensors")
        (self.folder / f"{name}-{self.rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def three_steps(zero_stage: int, algorithm: AlgorithmConfig, **keys: Any) -> Scenario:
    """Weights and metrics after three steps."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, algorithm, **keys)
        metrics = [learner.train_step(rank.groups(step)) for step in range(3)]
        rank.write(name, learner, metrics=metrics, version=learner.policy_version)

    return run


def offloaded(zero_stage: int, **keys: Any) -> Scenario:
    """The same, and what DeepSpeed says that it offloads. Small rows, so that gradients are summed there too."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, RLOO, token_budget=48, **keys)
        for step in range(3):
            learner.train_step(rank.groups(step))
        config = learner.policy._engine._config.zero_config
        parts = {"optimizer": config.offload_optimizer, "parameters": config.offload_param}
        rank.write(name, learner, offloaded=[what for what, part in parts.items() if part is not None])

    return run


def many_rows(zero_stage: int) -> Scenario:
    """Norms of one gradient in bfloat16: from one row, and as the sum of 400 equal parts of it."""

    def run(rank: Rank, name: str) -> None:
        text = rank.texts(1)[0]
        row = pack_row([(text.token_ids_T, text.sampled_T)])
        norms = []
        for num_rows in (1, 400):
            learner = rank.learner(zero_stage, RLOO, dtype="bfloat16")
            for number in range(num_rows):
                loss = learner.policy(row).mean() / num_rows / rank.world_size
                learner.policy.backward(loss, last=number == num_rows - 1)
            norms.append(learner.policy.step(1e-3))
        rank.write(name, learner, norms=norms)

    return run


def resume(zero_stage: int, algorithm: AlgorithmConfig, **keys: Any) -> Scenario:
    """Two steps, a checkpoint and two more, by the same learner and by one that loads the checkpoint."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, algorithm, **keys)
        torch.manual_seed(rank.rank)  # ranks that draw different numbers
        for step in range(2):
            learner.train_step(rank.groups(step))
        folder = rank.folder / f"{name}-checkpoint"
        folder.mkdir(exist_ok=True)
        checkpoint.save(learner, folder, rank=rank.rank)
        for kind in ("uninterrupted", "resumed"):
            if kind == "resumed":
                learner = rank.learner(zero_stage, algorithm, **keys)
                checkpoint.load(learner, folder)
            metrics = [learner.train_step(rank.groups(step)) for step in (2, 3)]
            rank.write(f"{name}-{kind}", learner, metrics=metrics, version=learner.policy_version)

    return run


def reshard(zero_stage: int, algorithm: AlgorithmConfig, source: str, **keys: Any) -> Scenario:
    """The checkpoint that another scenario wrote, on other ranks or another stage: saved again at once, and
    gone on from as `resume` does."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, algorithm, **keys)
        checkpoint.load(learner, rank.folder / f"{source}-checkpoint")
        folder = rank.folder / f"{name}-checkpoint"
        folder.mkdir(exist_ok=True)
        checkpoint.save(learner, folder, rank=rank.rank)
        kl_coef = learner.kl_controller.kl_coef
        metrics = [learner.train_step(rank.groups(step)) for step in (2, 3)]
        facts = {"metrics": metrics, "version": learner.policy_version, "kl_coef": kl_coef}
        rank.write(name, learner, parameters=parameters_of(learner), **facts)

    return run


def parameters_of(learner: Learner) -> dict[str, dict[str, bool]]:
    """Of each network: which parameters it has, and whether they are trained."""
    networks = {"policy": learner.policy, "value_model": learner.value_model}
    return {
        kind: {name: parameter.requires_grad for name, parameter in engine.module.named_parameters()}
        for kind, engine in networks.items()
        if engine is not None
    }


def base_as_reference(zero_stage: int) -> Scenario:
    """Log-probs of the base model itself, and of a learner whose adapters are trained and then switched off."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, RLOO, **LORA)
        texts = rank.texts(6)
        expected = [rank.base_logprobs(text) for text in texts]
        for step in range(2):
            learner.train_step(rank.groups(step))
        gaps = [
            float(np.abs(got - wanted).max())
            for got, wanted in zip(learner.reference_logprobs(texts), expected, strict=True)
        ]
        trained = learner.mean_nll(texts)
        untrained = -sum(map(np.sum, expected)) / sum(int(text.sampled_T.sum()) for text in texts)
        rank.write(name, learner, gaps=gaps, trained_nll=trained, untrained_nll=float(untrained))

    return run


def dropping_out(zero_stage: int, **keys: Any) -> Scenario:
    """Losses of the same texts with and without a gradient: something is dropped where something is learned."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, METHODS["sft"][0], dropout=0.5, **keys)
        learner.train_step(rank.groups(0))  # fresh adapters add nothing that could be dropped
        text = rank.texts(1)[0]
        row = pack_row([(text.token_ids_T, text.sampled_T)])
        learning = [learner.policy(row).sum().item() for _ in range(2)]
        with torch.no_grad():
            looking = [learner.policy(row).sum().item() for _ in range(2)]
        rank.write(name, learner, learning=learning, looking=looking)

    return run


def save_model(zero_stage: int) -> Scenario:
    """The trained policy in Hugging Face's format."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, RLOO)
        learner.train_step(rank.groups(0))
        checkpoint.save_model(
            learner, rank.folder / f"{name}-model", tokenizer_from=rank.folder / "policy", rank=rank.rank
        )
        rank.write(name, learner)

    return run


def poisoned(zero_stage: int, algorithm: AlgorithmConfig, poison: str) -> Scenario:
    """A step, then one with a NaN in it: what it raised, and whether any weight changed."""

    def run(rank: Rank, name: str) -> None:
        learner = rank.learner(zero_stage, algorithm)
        learner.train_step(rank.groups(0))
        groups = _POISONS[poison](learner, rank.groups(1))
        before = _weights(learner)
        raised = ""
        try:
            learner.train_step(groups)
        except NonFiniteError as error:
            raised = str(error)
        after = _weights(learner)
        # Bytes, because a NaN differs from itself.
        changed = [key for key in before if before[key].numpy().tobytes() != after[key].numpy().tobytes()]
        rank.write(name, learner, raised=raised, changed=changed, version=learner.policy_version)

    return run


def _poison_rollouts(
    groups: Sequence[RolloutGroup], spoil: Callable[[Rollout], Rollout]
) -> list[RolloutGroup]:
    """Spoil one rollout."""
    first, *others = groups
    return [replace(first, rollouts=(spoil(first.rollouts[0]), *first.rollouts[1:])), *others]


def _with_nan_behavior(rollout: Rollout) -> Rollout:
    logprobs_T = rollout.completion.behavior_logprobs_T.copy()
    logprobs_T[-1] = np.nan
    return replace(rollout, completion=replace(rollout.completion, behavior_logprobs_T=logprobs_T))


def _poison_weights(learner: Learner, groups: list[RolloutGroup]) -> list[RolloutGroup]:
    with torch.no_grad():
        next(learner.policy.module.parameters()).view(-1)[0] = torch.nan
    return groups


def _poison_gradient(learner: Learner, groups: list[RolloutGroup]) -> list[RolloutGroup]:
    """A finite loss whose gradient is not: as from a square root at 0 inside the network."""

    def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * torch.nan)

    norm = learner.policy.module.get_submodule("model.model.norm")
    norm.register_forward_hook(spoil)
    return groups


_POISONS: dict[str, Callable[[Learner, list[RolloutGroup]], list[RolloutGroup]]] = {
    "behavior": lambda _, groups: _poison_rollouts(groups, _with_nan_behavior),
    "score": lambda _, groups: _poison_rollouts(groups, lambda rollout: replace(rollout, score=float("nan"))),
    "infinite_score": lambda _, groups: _poison_rollouts(
        groups, lambda rollout: replace(rollout, score=float("inf"))
    ),
    "weight": _poison_weights,
    "gradient": _poison_gradient,
}

SCENARIOS: dict[str, Scenario] = {
    **{f"rloo-{stage}": three_steps(stage, RLOO) for stage in range(4)},
    **{f"ppo-{stage}": three_steps(stage, PPO) for stage in range(4)},
    "rloo-small-rows": three_steps(0, RLOO, token_budget=48),
    "ppo-small-rows": three_steps(0, PPO, token_budget=48),
    **{
        f"{name}-{stage}": three_steps(stage, METHODS[name][0], **METHODS[name][1])
        for name in METHODS
        for stage in (0, 3)
    },
    **{
        f"{name}-small-rows": three_steps(0, METHODS[name][0], **METHODS[name][1], token_budget=48)
        for name in METHODS
    },
    **{f"offload-{name}": offloaded(stage, **keys) for name, (stage, keys) in OFFLOADED.items()},
    **{f"resume-offload-{name}": resume(stage, RLOO, **keys) for name, (stage, keys) in OFFLOADED.items()},
    **{f"many-rows-{stage}": many_rows(stage) for stage in (2, 3)},
    "rloo-checkpointing": three_steps(0, RLOO, gradient_checkpointing=True),
    "rloo-minibatches": three_steps(0, RLOOConfig(kind="rloo", num_epochs=2, num_minibatches=4)),
    **{f"resume-rloo-{stage}": resume(stage, RLOO) for stage in range(4)},
    **{f"resume-ppo-{stage}": resume(stage, PPO) for stage in range(4)},
    **{f"resume-dropout-attention-{stage}": resume(stage, RLOO, dropout=0.5) for stage in range(4)},
    **{f"resume-dropout-adapters-{stage}": resume(stage, RLOO, dropout=0.5, **LORA) for stage in range(4)},
    **{f"resume-lora-{stage}": resume(stage, RLOO, **LORA) for stage in range(4)},
    **{f"resume-bfloat16-{stage}": resume(stage, RLOO, dtype="bfloat16") for stage in range(4)},
    **{
        f"reshard-{kind}-to-{stage}-from-{source}": reshard(
            stage, algorithm, f"resume-{kind}-{source}", **keys
        )
        for kind, (algorithm, keys) in RESHARDED.items()
        for stage in range(4)
        for source in SOURCES
    },
    **{f"save-{stage}": save_model(stage) for stage in range(4)},
    **{f"base-{stage}": base_as_reference(stage) for stage in (0, 3)},
    "dropout-attention": dropping_out(0),
    "dropout-adapters": dropping_out(0, **LORA),
    **{f"nan-rloo-{poison}": poisoned(0, RLOO, poison) for poison in _POISONS},
    **{f"nan-ppo-{poison}": poisoned(0, PPO, poison) for poison in ("score", "gradient")},
    **{f"nan-zero2-{poison}": poisoned(2, RLOO, poison) for poison in ("behavior", "gradient")},
}


def _weights(learner: Learner) -> dict[str, torch.Tensor]:
    """Full copies of all parameters of all networks, by name. All ranks must call."""
    networks = {"policy": learner.policy, "value": learner.value_model}
    return {
        f"{kind}.{name}": parameter.clone()
        for kind, engine in networks.items()
        if engine is not None
        for name, parameter in engine.full_parameters(lambda name: True)
    }


def main(scenarios: Mapping[str, Scenario]) -> None:
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(1)  # as many as sum up to the machine's cores, and the same for every world size
    join_group(rank=rank, world_size=world_size, address="127.0.0.1", port=port, deadline_s=DEADLINE_S)
    process = Rank(rank, world_size, Path(sys.argv[4]))
    for name in sys.argv[5:]:
        scenarios[name](process, f"{name}-world{world_size}")
    with suppress(Exception):  # the tests look at what was written
        leave_group()


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    main(SCENARIOS)
