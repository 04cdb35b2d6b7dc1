"""The door to vLLM: one engine, stepped by hand, that samples completions and takes new weights.

Not thread-safe: `actors/engine_loop.py` owns it from one thread.

Dimension key: T token positions of one sequence (prompt, then completion).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vllm import EngineArgs, SamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from actors.adapter_pull import ADAPTERS, adapter_options
from actors.config import RolloutConfig
from actors.engine_options import engine_options
from actors.engine_stats import EngineStats
from actors.weight_pull import SHARED_MEMORY, register
from core.config import ModelConfig
from core.errors import UserError, WorkerError, WorkerLost
from core.messages import Completion, Float32s, SampleRequest, VersionSpan
from core.weights import WeightManifest

PROBE_ID = "weight-push-probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """How a verified weight pull went."""

    load_s: float
    """Seconds to check the digests, load and re-pack."""
    verify_s: float
    """Seconds to score the probe."""
    redone_tokens: int
    """Sampled for completions that were given up, to be sampled again under the new weights."""
    probe_gap: float
    """Largest difference between engine and learner on the probe, in nats."""


class Sampler:
    """A vLLM engine with the policy's weights of one version."""

    def __init__(
        self,
        model_path: Path,
        model: ModelConfig,
        rollout: RolloutConfig,
        *,
        adapter_rank: int | None = None,
        keeps_running: bool = True,
    ) -> None:
        """`adapter_rank`: pushes bring adapters of this rank, for the weights in the folder; None: all weights.
        `keeps_running`: whether running completions go on under new weights, or are sampled again."""
        register()
        self._keeps_running = keeps_running
        self._rollout = rollout
        self._adapters = None if adapter_rank is None else ADAPTERS
        pull: dict[str, Any] = {"weight_transfer_config": {"backend": SHARED_MEMORY}}
        self.stats = EngineStats()
        self._requests: dict[str, SampleRequest] = {}
        self._policy_version: int | None = None
        self._finished_during_pull: list[Completion] = []
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(model_path),
                trust_remote_code=False,
                load_format="safetensors",
                **engine_options(model, rollout),
                **(pull if adapter_rank is None else adapter_options(model_path, adapter_rank)),
            ),
            stat_loggers=[lambda config, index: self.stats],
        )

    @property
    def has_work(self) -> bool:
        return bool(self._finished_during_pull) or self._engine.has_unfinished_requests()

    def submit(self, request: SampleRequest) -> None:
        """Queue one completion. Raises `UserError` for a prompt that does not fit, `WorkerLost` without verified
        weights: another worker may have them."""
        self._require_verified_weights()
        limit = self._engine.model_config.max_model_len
        wanted = len(request.prompt.token_ids) + self._rollout.max_new_tokens
        if wanted > limit:
            raise UserError(
                f"prompt {request.prompt.prompt_id}: {len(request.prompt.token_ids)} tokens and "
                f"rollout.max_new_tokens={self._rollout.max_new_tokens} exceed model.max_model_len={limit}. "
                f"Shorten the prompt or raise model.max_model_len to {wanted}."
            )
        self._add(request)

    def _add(self, request: SampleRequest) -> None:
        self._requests[request.request_id] = request
        params = SamplingParams(
            max_tokens=self._rollout.max_new_tokens,
            temperature=self._rollout.temperature,
            top_k=self._rollout.top_k or 0,
            top_p=self._rollout.top_p,
            min_p=self._rollout.min_p,
            stop=self._rollout.stop,
            seed=request.seed,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": request.prompt.token_ids.tolist()}
        self._engine.add_request(
            request.request_id,
            prompt,  # type: ignore[arg-type]
            params,
            lora_request=self._adapters,
        )

    def step(self) -> list[Completion]:
        """Decode one token of every running sequence; the completions that finished with it.

        Raises `WorkerLost` if the last weight push failed.
        """
        self._require_verified_weights()
        finished, self._finished_during_pull = self._finished_during_pull, []
        if self._engine.has_unfinished_requests():
            finished += [self._completion(output) for output in self._decode() if output.finished]
        return finished

    def abort(self, request_ids: Sequence[str]) -> None:
        """Give up requests, running or just finished."""
        self._engine.abort_request(list(request_ids))
        for request_id in request_ids:
            self._requests.pop(request_id, None)
        kept = [done for done in self._finished_during_pull if done.request_id not in request_ids]
        self._finished_during_pull = kept

    def pull_weights(self, manifest: WeightManifest) -> PullReport:
        """Take new weights and prove that they arrived. Raises `WorkerError` if they did not.

        Running requests keep their tokens and go on under the new version, or start again with their seeds. What
        finishes while the probe is scored is held back until the probe has agreed.
        """
        started = time.perf_counter()
        again, redone_tokens = ([], 0) if self._keeps_running else self._give_up_running()
        self._policy_version = None  # serves nobody until the probe has agreed
        self._load(manifest)
        self._engine.set_weight_version(str(manifest.policy_version))
        # Keys and values computed with the old weights would answer for the new ones.
        self._engine.reset_prefix_cache(reset_running_requests=True)
        for request in again:
            self._add(request)
        loaded = time.perf_counter()
        # The mean: in bfloat16 some tokens differ by half a nat, but with a wrong tensor all do.
        gap = float(np.abs(self._score_probe(manifest) - manifest.probe_logprobs_T)[1:].mean())
        if not gap <= manifest.max_probe_gap:
            raise WorkerError(
                f"weight push: after version {manifest.policy_version} was loaded, the engine's log-probs of "
                f"the probe differ from the learner's by {gap:.2e} nats on average "
                f"(limit {manifest.max_probe_gap:.0e})"
            )
        self._policy_version = manifest.policy_version
        return PullReport(
            load_s=loaded - started,
            verify_s=time.perf_counter() - loaded,
            redone_tokens=redone_tokens,
            probe_gap=gap,
        )

    def _give_up_running(self) -> tuple[list[SampleRequest], int]:
        """Every running request, none of which runs any more, and the tokens that they had."""
        states = self._engine.output_processor.request_states.values()
        num_tokens = sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)
        running = list(self._requests.values())
        self._engine.abort_request([request.request_id for request in running])
        return running, num_tokens

    def _load(self, manifest: WeightManifest) -> None:
        assert (manifest.adapters is None) == (self._adapters is None), "both ends know the form of a push"
        if manifest.adapters is not None:
            self._engine.collective_rpc("pull_adapters", args=(manifest,))
            return
        update = {"path": manifest.path, "num_bytes": manifest.num_bytes, "tensors": list(manifest.tensors)}
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": update})
        self._engine.collective_rpc("finish_weight_update")

    def _require_verified_weights(self) -> None:
        """Neither new requests nor running ones are served by weights that nobody vouches for."""
        if self._policy_version is None:
            raise WorkerLost("this rollout worker has had no verified weight push, so it must not serve")

    def _score_probe(self, manifest: WeightManifest) -> Float32s:
        """[T] float32, nats: the engine's log-probs of the probe's tokens; 0 for the first."""
        token_ids = manifest.probe_token_ids_T.tolist()
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        self._engine.add_request(
            PROBE_ID, {"prompt_token_ids": token_ids}, params, lora_request=self._adapters
        )
        probe: RequestOutput | None = None
        while probe is None:
            for output in self._decode():  # to the end of the step: others may finish in the probe's own
                if output.finished and output.request_id == PROBE_ID:
                    probe = output
                elif output.finished:
                    self._finished_during_pull.append(self._completion(output))
        assert probe.prompt_logprobs is not None, "the probe asks for them"
        scores = probe.prompt_logprobs[1:]
        values = [_logprob(scores[i], token) for i, token in enumerate(token_ids[1:])]
        return np.array([0.0, *values], dtype=np.float32)

    def _decode(self) -> Iterator[RequestOutput]:
        """One step of the engine: what it has to say of each request."""
        for output in self._engine.step():
            assert isinstance(output, RequestOutput), "a language model, not a pooling model"
            yield output

    def _completion(self, output: RequestOutput) -> Completion:
        request = self._requests.pop(output.request_id)
        sample: CompletionOutput = output.outputs[0]
        prompt_ids, sampled_ids = request.prompt.token_ids, np.asarray(sample.token_ids, dtype=np.int32)
        assert sample.logprobs is not None
        greedy = self._rollout.temperature == 0  # then each token is certain, whatever vLLM reports
        logprobs = [
            0.0 if greedy else _logprob(entry, token)
            for entry, token in zip(sample.logprobs, sample.token_ids, strict=True)
        ]
        return Completion(
            request_id=request.request_id,
            prompt=request.prompt,
            token_ids_T=np.concatenate([prompt_ids, sampled_ids]),
            sampled_T=np.arange(len(prompt_ids) + len(sampled_ids)) >= len(prompt_ids),
            behavior_logprobs_T=np.concatenate([np.zeros(len(prompt_ids)), logprobs]).astype(np.float32),
            version_spans=_version_spans(sample),
            text=sample.text,
            truncated=sample.finish_reason == "length",
        )


def _logprob(entry: dict[int, Logprob] | None, token: int) -> float:
    """Nats. Only the first token of a prompt has no entry, and nobody asks for that one."""
    assert entry is not None
    return entry[token].logprob


def _version_spans(sample: CompletionOutput) -> tuple[VersionSpan, ...]:
    assert sample.weight_versions, "vLLM reports the weight version of every token"
    return tuple(
        VersionSpan(policy_version=int(span.version), start=span.start, stop=span.end)
        for span in sample.weight_versions
    )
