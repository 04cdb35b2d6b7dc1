"""A weight push from a learner to one rollout worker, without Ray, and where its time goes.

    python -m benchmarks.weight_push [--rounds 7]

Two processes, as in a run: here the learner's end (`learner/weight_push.py`), in a child the vLLM engine
(`actors/weight_pull.py`), a pipe between them. Every push is compared with a plain copy of the same bytes,
timed in the same round.
"""

import argparse
import functools
import multiprocessing
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.measuring import Round, enter_worker_environment, interleave, print_table, summary

PROBE_TOKEN_IDS = [504, 3575, 314, 253, 1123, 30, 1250, 260, 1951, 314]
"""Any tokens will do; a run takes a prompt's."""
MAX_PROBE_GAP = 1e-3
PARTS = ("pack", "probe", "load", "verify", "handover")
LOAD_PARTS = ("map", "digest", "prepare", "load_weights", "finish", "repack_head")


def serve_engine(pipe: Connection) -> None:
    """The child: pull every manifest that arrives, answer with how long it took."""
    from actors import weight_pull  # vLLM and DeepSpeed live in different processes, as in a run
    from actors.config import RolloutConfig
    from actors.sampler import Sampler
    from core import weights
    from core.config import ModelConfig
    from orchestration.assets import resolve_model

    spent_s: Counter[str] = Counter()
    patched: Any = weight_pull  # its parts get a stopwatch
    checks: Any = weights
    checks.map_buffer = _timed(checks.map_buffer, "map", spent_s)
    checks.digest = _timed(checks.digest, "digest", spent_s)
    patched.initialize_layerwise_reload = _timed(patched.initialize_layerwise_reload, "prepare", spent_s)
    patched.finalize_layerwise_reload = _timed(patched.finalize_layerwise_reload, "finish", spent_s)
    engine_class: Any = patched.SharedMemoryEngine
    engine_class._repack_tied_heads = _timed(engine_class._repack_tied_heads, "repack_head", spent_s)
    path = resolve_model("asset:smollm2-135m-instruct")
    sampler = Sampler(path, ModelConfig(path=str(path), max_model_len=128), RolloutConfig())
    pipe.send("ready")
    while (manifest := pipe.recv()) is not None:
        spent_s.clear()
        report = sampler.pull_weights(manifest)
        pipe.send(asdict(report) | spent_s)


def _timed(function: Callable[..., Any], name: str, spent_s: "Counter[str]") -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent_s[name] += time.perf_counter() - started  # type: ignore[assignment]

    return timed


def make_learner(**options: Any) -> Any:
    """A learner of one rank in this process. `options`: of `LearnerConfig`."""
    # Heavy, and not wanted in the child, which imports this file too.
    import torch

    from core.decoding import Decoding
    from core.models import load_policy
    from learner.algorithm_config import RLOOConfig
    from learner.config import KLConfig, LearnerConfig
    from learner.engine import ZeroEngine
    from learner.learner import Learner
    from learner.lora import add_adapter
    from learner.process_group import join_group
    from orchestration.assets import resolve_model

    torch.set_num_threads(2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join_group(rank=0, world_size=1, address="127.0.0.1", port=port, deadline_s=60)
    config = LearnerConfig(**options)
    policy = load_policy(resolve_model("asset:smollm2-135m-instruct"), "float32")
    if config.lora is not None:
        add_adapter(policy, config.lora)
    return Learner(
        rank=0,
        world_size=1,
        config=config,
        algorithm=RLOOConfig(kind="rloo"),
        kl=KLConfig(),
        policy=ZeroEngine(policy, config, dtype="float32"),
        value_model=None,
        decoding=Decoding(),
        max_new_tokens=24,
        seed=0,
        num_steps=100,
    )


class Push:
    """The learner's end, and the pipe to the engine."""

    def __init__(self, pipe: Connection) -> None:
        # Heavy, and not wanted in the child, which imports this file too.
        import numpy as np
        import torch

        from learner.weight_push import WeightPush

        self._learner = make_learner()
        probe = np.array(PROBE_TOKEN_IDS, dtype=np.int32)
        self._push = WeightPush(
            self._learner,
            rank=0,
            node="",
            adapters_only=False,
            probe_token_ids_T=probe,
            max_probe_gap=MAX_PROBE_GAP,
        )
        self._pipe = pipe
        self._scale = torch.tensor(1.0)

    def __call__(self) -> Round:
        self._move_weights()
        started = time.perf_counter()
        manifest, packed = self._push.pack()
        # Timing the copy is part of `pack`, but no part of a push.
        self._pipe.send(manifest)
        pulled = self._pipe.recv()
        total = time.perf_counter() - started - packed["copy_s"]
        measured = {name.removesuffix("_s"): value for name, value in (packed | pulled).items()}
        known = sum(measured[name] for name in PARTS if name != "handover")
        return {name: measured.get(name, 0.0) for name in (*measured, *LOAD_PARTS)} | {
            "total": total,
            "handover": total - known,
        }

    def close(self) -> None:
        from learner.process_group import leave_group  # heavy, see `__init__`

        self._push.close()
        leave_group()

    def _move_weights(self) -> None:
        """As an optimizer step would: every weight a little, so that each push carries other bytes."""
        self._learner.policy_version += 1
        for _, parameter in self._learner.policy.full_parameters(lambda _: True):
            parameter.mul_(1 + 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipe, far_end = context.Pipe()
    child = context.Process(target=serve_engine, args=(far_end,), daemon=True)
    child.start()
    far_end.close()  # or the death of the child would go unnoticed
    push = Push(pipe)
    try:
        assert pipe.recv() == "ready"
        first = push()
        report(first, interleave([push], rounds=arguments.rounds))
        pipe.send(None)
        child.join(timeout=30)
    finally:
        push.close()


def report(first: Round, rounds: list[Round]) -> None:
    columns = ["median", "min", "max"]
    size = rounds[0]["bytes"] / 1e6
    gap = max(measured["probe_gap"] for measured in rounds)
    print(f"{len(rounds)} rounds, {size:.0f} MB, largest gap on the probe {gap:.1e} nats")
    print(
        f"first push of all: {first['total']:.2f} s (fresh pages), {first['total'] / first['copy']:.1f} copies"
    )
    parts = [*PARTS, "total", "copy"]
    seconds = {name: summary(rounds, lambda r, n=name: r[n], 3) for name in parts}  # type: ignore[misc]
    print_table("seconds", ["part", *columns], seconds)
    ratios = {
        f"{name} / copy": summary(rounds, lambda r, n=name: r[n] / r["copy"], 1)  # type: ignore[misc]
        for name in ("total", "pack", "load")
    }
    print_table("ratio to a plain copy of the same bytes", ["", *columns], ratios)
    measured = {
        name: summary(rounds, lambda r, n=name: r[n] / r["load"])  # type: ignore[misc]
        for name in LOAD_PARTS
        if name != "load_weights"
    }
    measured["load_weights (the rest)"] = summary(
        rounds, lambda r: 1 - sum(r[n] for n in LOAD_PARTS if n != "load_weights") / r["load"]
    )
    print_table("share of load", ["part", *columns], measured)


if __name__ == "__main__":
    enter_worker_environment()
    main()
