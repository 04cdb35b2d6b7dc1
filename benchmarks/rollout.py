"""A rollout worker's engine loop against the bare vLLM engine, on the same prompts and seeds.

    python -m benchmarks.rollout [--rounds 7]

Both sides drive one engine object, in turns. Bare: `add_request` for all, then `LLMEngine.step` until nothing
is left. Ours: `EngineLoop.sample`, which submits from another thread and makes a `Completion` of each output.
"""

import argparse
import time
from typing import Any

from benchmarks.measuring import Round, enter_worker_environment, interleave, print_table, summary

enter_worker_environment()

import numpy as np  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402

from actors.config import RolloutConfig  # noqa: E402
from actors.engine_loop import EngineLoop  # noqa: E402
from actors.sampler import Sampler  # noqa: E402
from core.config import ModelConfig  # noqa: E402
from core.messages import Prompt, SampleRequest  # noqa: E402
from orchestration.assets import resolve_model  # noqa: E402

COMPLETIONS, PROMPT_TOKENS = 32, 5
"""A step of a method that compares completions: 8 prompts, 4 completions of each."""


class Sides:
    """One engine, and two ways to drive it."""

    def __init__(self) -> None:
        path = resolve_model("asset:smollm2-135m-instruct")
        rollout = RolloutConfig(max_new_tokens=24)
        self._sampler = Sampler(path, ModelConfig(path=str(path), max_model_len=128), rollout)
        # What a verified weight push would have set; the engine already has the weights that it loaded.
        self._sampler._policy_version = 0
        self._engine = self._sampler._engine
        self._engine.set_weight_version("0")
        self._loop = EngineLoop(self._sampler)
        self._max_new_tokens = rollout.max_new_tokens
        self._requests = _requests()
        self._tokens: dict[str, dict[str, list[int]]] = {}

    def bare(self) -> Round:
        started = time.perf_counter()
        for request in self._requests:
            params = SamplingParams(
                max_tokens=self._max_new_tokens,
                temperature=1.0,
                seed=request.seed,
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt = {"prompt_token_ids": request.prompt.token_ids.tolist()}
            self._engine.add_request(request.request_id, prompt, params)  # type: ignore[arg-type]
        outputs: list[Any] = []
        while self._engine.has_unfinished_requests():
            outputs += [output for output in self._engine.step() if output.finished]
        seconds = time.perf_counter() - started
        tokens = {output.request_id: list(output.outputs[0].token_ids) for output in outputs}
        return self._rate("bare", tokens, seconds)

    def ours(self) -> Round:
        started = time.perf_counter()
        completions = list(self._loop.sample(self._requests))
        seconds = time.perf_counter() - started
        tokens = {c.request_id: c.token_ids_T[c.num_prompt_tokens :].tolist() for c in completions}
        return self._rate("ours", tokens, seconds)

    def _rate(self, side: str, tokens: dict[str, list[int]], seconds: float) -> Round:
        assert len(tokens) == COMPLETIONS
        self._tokens[side] = tokens
        num_tokens = sum(len(sampled) for sampled in tokens.values())
        return {side: num_tokens / seconds, "tokens": float(num_tokens)}

    @property
    def same_tokens_fraction(self) -> float:
        """Completions that both sides sampled alike, as the same seeds should give."""
        bare, ours = self._tokens["bare"], self._tokens["ours"]
        return sum(bare[request_id] == ours[request_id] for request_id in bare) / len(bare)

    def close(self) -> None:
        self._loop.close()


def _requests() -> list[SampleRequest]:
    generator = np.random.default_rng(0)
    prompts = [
        Prompt(prompt_id=str(i), text="", token_ids=ids)
        for i, ids in enumerate(generator.integers(1000, 49000, size=(8, PROMPT_TOKENS), dtype=np.int32))
    ]
    return [
        SampleRequest(request_id=f"r{index}", prompt=prompts[index % len(prompts)], seed=index)
        for index in range(COMPLETIONS)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    sides = Sides()
    rounds = interleave([sides.bare, sides.ours], rounds=arguments.rounds)
    print(
        f"{len(rounds)} rounds, {COMPLETIONS} completions, {rounds[0]['tokens']:.0f} sampled tokens, "
        f"{sides.same_tokens_fraction:.0%} of the completions the same on both sides"
    )
    columns = ["median", "min", "max"]
    rates = {
        "bare engine": summary(rounds, lambda r: r["bare"], 0),
        "engine loop": summary(rounds, lambda r: r["ours"], 0),
    }
    print_table("tokens a second", ["side", *columns], rates)
    ratio = {"engine loop / bare engine": summary(rounds, lambda r: r["ours"] / r["bare"], 3)}
    print_table("ratio of tokens a second", ["", *columns], ratio)
    sides.close()


if __name__ == "__main__":
    main()
