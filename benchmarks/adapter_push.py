"""Adapters pushed as such against adapters pushed merged: what a push costs, and what sampling then costs.

    python -m benchmarks.adapter_push [--rounds 5] [--rank 16]

One learner with adapters here, two vLLM engines in a child each, one for each form. A round moves the adapters,
pushes them in both forms, and has both engines sample the same step, one after the other.
"""

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.measuring import Round, enter_worker_environment, interleave, print_table, summary
from benchmarks.weight_push import MAX_PROBE_GAP, PROBE_TOKEN_IDS, make_learner

COMPLETIONS, PROMPT_TOKENS, NEW_TOKENS = 32, 5, 24
ALPHA = 32.0
FORMS = ("merged", "adapters")


def serve_engine(pipe: Connection, adapter_rank: int | None) -> None:
    """The child: pull every manifest that arrives, sample a step, answer with how long both took."""
    import numpy as np

    from actors.config import RolloutConfig
    from actors.sampler import Sampler  # vLLM and DeepSpeed live in different processes, as in a run
    from core.config import ModelConfig
    from core.messages import Prompt, SampleRequest
    from orchestration.assets import resolve_model

    path = resolve_model("asset:smollm2-135m-instruct")
    rollout = RolloutConfig(max_new_tokens=NEW_TOKENS)
    model = ModelConfig(path=str(path), max_model_len=128)
    sampler = Sampler(path, model, rollout, adapter_rank=adapter_rank)
    random = np.random.default_rng(0)
    pipe.send("ready")
    while (manifest := pipe.recv()) is not None:
        report = sampler.pull_weights(manifest)
        started = time.perf_counter()
        for number in range(COMPLETIONS):
            ids = random.integers(100, 40_000, PROMPT_TOKENS).astype(np.int32)
            prompt = Prompt(prompt_id=str(number), text="", token_ids=ids)
            sampler.submit(SampleRequest(request_id=str(number), prompt=prompt, seed=number))
        num_tokens = 0
        while sampler.has_work:
            num_tokens += sum(completion.num_completion_tokens for completion in sampler.step())
        seconds = time.perf_counter() - started
        pull_s = report.load_s + report.verify_s
        pipe.send({"pull": pull_s, "gap": report.probe_gap, "tokens_per_s": num_tokens / seconds})


class Side:
    """One form of a push, and the engine that takes it."""

    def __init__(self, form: str, learner: Any, pipe: Connection) -> None:
        import numpy as np  # heavy, and not wanted in the child

        from learner.weight_push import WeightPush

        self._form, self._learner, self._pipe = form, learner, pipe
        self._push = WeightPush(
            learner,
            rank=0,
            node="",
            adapters_only=form == "adapters",
            probe_token_ids_T=np.array(PROBE_TOKEN_IDS, dtype=np.int32),
            max_probe_gap=MAX_PROBE_GAP,
        )

    def __call__(self) -> Round:
        import torch  # heavy, as above

        if self._form == FORMS[0]:  # both push the same version
            self._learner.policy_version += 1
            for _, parameter in self._learner.policy.full_parameters(lambda name: ".lora_B" in name):
                parameter.add_(1e-3 * torch.randn_like(parameter))
        manifest, packed = self._push.pack()
        self._pipe.send(manifest)
        measured = self._pipe.recv() | {"pack": packed["pack_s"], "bytes": packed["bytes"]}
        measured["push"] = packed["pack_s"] + packed["probe_s"] + measured["pull"]
        return {f"{self._form}_{name}": value for name, value in measured.items()}

    def close(self) -> None:
        self._pipe.send(None)
        self._push.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for form in FORMS:
        pipes[form], far_end = context.Pipe()
        rank = arguments.rank if form == "adapters" else None
        context.Process(target=serve_engine, args=(far_end, rank), daemon=True).start()
        far_end.close()  # or the death of the child would go unnoticed
        assert pipes[form].recv() == "ready"
    learner = make_learner(lora={"rank": arguments.rank, "alpha": ALPHA})
    sides = [Side(form, learner, pipes[form]) for form in FORMS]
    try:
        report(interleave(sides, rounds=arguments.rounds))
    finally:
        for side in sides:
            side.close()
        from learner.process_group import leave_group  # heavy, as above

        leave_group()


def report(rounds: list[Round]) -> None:
    columns = ["median", "min", "max"]
    for form in FORMS:
        gap = max(measured[f"{form}_gap"] for measured in rounds)
        size = rounds[0][f"{form}_bytes"] / 1e6
        print(f"{form}: {size:.1f} MB a push, largest gap on the probe {gap:.1e} nats")
    parts = [f"{form}_{name}" for form in FORMS for name in ("pack", "pull", "push", "tokens_per_s")]
    seconds = {name: summary(rounds, lambda r, n=name: r[n], 3) for name in parts}  # type: ignore[misc]
    print_table("seconds, and tokens a second", ["", *columns], seconds)
    ratios = {
        f"{name}: merged / adapters": summary(
            rounds,
            lambda r, n=name: r[f"merged_{n}"] / r[f"adapters_{n}"],  # type: ignore[misc]
        )
        for name in ("bytes", "pack", "pull", "push", "tokens_per_s")
    }
    print_table("ratio within a round", ["", *columns], ratios)


if __name__ == "__main__":
    enter_worker_environment()
    main()
