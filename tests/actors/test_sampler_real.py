"""The sampler on a real vLLM engine: what it samples, what it takes as new weights, and what it refuses.

One engine for all tests of this file, in this process: importing vLLM takes ten seconds. Every test brings
the engine to the weights that it needs.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from actors.config import MAX_ADAPTER_RANK, RolloutConfig
from actors.engine_loop import Engine, EngineLoop
from core.config import ModelConfig
from core.decoding import UNCHANGED, Decoding
from core.errors import UserError, WorkerError, WorkerLost
from core.messages import Completion, Float32s, Int32s, Prompt, SampleRequest, VersionSpan
from core.models import TokenLogprobs, load_policy
from core.packing import pack_row
from core.weights import (
    AdapterScale,
    TensorEntry,
    WeightManifest,
    digest,
    map_buffer,
    verified_tensors,
    view_tensors,
)
from orchestration.recipe.config import PROBE_GAPS
from tests.actors.test_engine_loop import FakeEngine

if TYPE_CHECKING:
    from actors.sampler import Sampler

pytestmark = pytest.mark.real

MAX_MODEL_LEN = 512
MAX_NEW_TOKENS = 16
MAX_GAP = 1e-3
"""Nats between engine and learner, with the same float32 weights."""
BLOCK_TOKENS = 128
"""vLLM's prefix cache works on whole blocks of this many tokens on CPUs, so shorter prompts never meet it."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


TRUNCATED = (
    Decoding(top_k=5),
    Decoding(top_p=0.8),
    Decoding(min_p=0.05),
    Decoding(temperature=1.3, top_k=200, top_p=0.9, min_p=0.001),
)


class Learner:
    """The learner's end of a push: a policy whose weights the tests change, and manifests of it."""

    def __init__(self, model_path: Path, folder: Path) -> None:
        self._path = folder / "weights"
        self.policy: TokenLogprobs = load_policy(model_path, "float32").eval()
        self.adapters: AdapterScale | None = None
        self.version = 0

    def change(self, scale: float = 0.05) -> None:
        """Another policy, by far more than rounding."""
        generator = torch.Generator().manual_seed(self.version)
        self.version += 1
        with torch.no_grad():
            for _, parameter in self.pushed():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))

    def pushed(self) -> list[tuple[str, torch.nn.Parameter]]:
        """What a push consists of, by the names that the engine knows."""
        return [(name.removeprefix("model."), tensor) for name, tensor in self.policy.named_parameters()]

    def manifest(self) -> WeightManifest:
        """The present weights in a file, with digests and the log-probs of a probe."""
        named = self.pushed()
        offsets = np.cumsum([0, *(tensor.numel() * 4 for _, tensor in named)]).tolist()
        entries = tuple(
            TensorEntry(
                name=name,
                dtype="float32",
                shape=tuple(tensor.shape),
                offset_bytes=offset,
                digest=digest(tensor),
            )
            for (name, tensor), offset in zip(named, offsets, strict=False)
        )
        views = dict(view_tensors(map_buffer(str(self._path), offsets[-1]), entries))
        for name, tensor in named:
            views[name].copy_(tensor.detach())
        probe = token_ids(1, 64)
        return WeightManifest(
            policy_version=self.version,
            node="node",
            path=str(self._path),
            num_bytes=offsets[-1],
            tensors=entries,
            adapters=self.adapters,
            probe_token_ids_T=probe,
            probe_logprobs_T=self.logprobs(probe, np.arange(64) > 0),
            max_probe_gap=PROBE_GAPS["float32"],
        )

    @torch.no_grad()
    def logprobs(self, token_ids_T: Int32s, trained_T: Any, decoding: Decoding = UNCHANGED) -> Float32s:
        """[T] float32, nats; 0 where not trained."""
        logprobs_T = np.zeros(len(token_ids_T), dtype=np.float32)
        logprobs_T[trained_T] = self.policy(pack_row([(token_ids_T, trained_T)]), decoding).numpy()
        return logprobs_T

    @torch.no_grad()
    def likeliest(self, completion: Completion) -> Any:
        """The likeliest token at each place of a completion."""
        row = pack_row([(completion.token_ids_T, completion.sampled_T)])
        return self.policy(row, logits=True).argmax(1).numpy()


class AdapterLearner(Learner):
    """The same with adapters beside frozen weights, of a rank that vLLM has no step for."""

    def __init__(self, model_path: Path, folder: Path) -> None:
        super().__init__(model_path, folder)
        self.adapters = AdapterScale(rank=3, alpha=12.0)
        lora = LoraConfig(r=3, lora_alpha=12, target_modules="all-linear")
        inject_adapter_in_model(lora, self.policy.model)

    def change(self, scale: float = 0.1) -> None:
        super().change(scale)

    def pushed(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [
            (f"base_model.model.{name.removeprefix('model.').replace('.default.', '.')}", parameter)
            for name, parameter in self.policy.named_parameters()
            if ".lora_" in name
        ]


@pytest.fixture(scope="module")
def learner(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return Learner(tiny_model, tmp_path_factory.mktemp("push"))


@pytest.fixture(scope="module")
def make_sampler(tiny_model: Path) -> Iterator[Callable[..., "Sampler"]]:
    """Engines of this process, with vLLM's settings in the environment while they live."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        from actors.sampler import Sampler  # vLLM: ten seconds, and it reads the environment

        def make(temperature: float, adapter_rank: int | None = None) -> Sampler:
            return Sampler(
                tiny_model,
                ModelConfig(path=str(tiny_model), max_model_len=MAX_MODEL_LEN),
                RolloutConfig(
                    max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, max_concurrent_sequences=16
                ),
                adapter_rank=adapter_rank,
            )

        yield make


@pytest.fixture(scope="module")
def engine(make_sampler: Callable[..., "Sampler"]) -> "Sampler":
    """The engine of most tests, as it comes up: without a push yet."""
    return make_sampler(1.0)


@pytest.fixture(scope="module")
def warm_engine(make_sampler: Callable[..., "Sampler"]) -> "Sampler":
    """An engine at another temperature. It lives as long as the first: the end of one takes vLLM's process
    groups from all engines of the process."""
    return make_sampler(0.7)


@pytest.fixture
def sampler(engine: "Sampler", learner: Learner) -> "Sampler":
    """The engine, idle and with the learner's weights."""
    assert not engine.has_work
    engine.pull_weights(learner.manifest())
    return engine


@pytest.fixture(scope="module")
def adapter_learner(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterLearner:
    return AdapterLearner(tiny_model, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def adapter_engine(make_sampler: Callable[..., "Sampler"]) -> "Sampler":
    """An engine that is pushed adapters."""
    return make_sampler(1.0, adapter_rank=3)


@pytest.fixture
def adapter_sampler(adapter_engine: "Sampler", adapter_learner: AdapterLearner) -> "Sampler":
    """That engine, idle and with the adapters of its learner."""
    assert not adapter_engine.has_work
    adapter_engine.pull_weights(adapter_learner.manifest())
    return adapter_engine


@pytest.fixture(params=["merged", "adapters"])
def pushed(request: pytest.FixtureRequest) -> tuple["Sampler", Learner]:
    """Both forms of a push: what holds for one must hold for the other."""
    names = ("sampler", "learner") if request.param == "merged" else ("adapter_sampler", "adapter_learner")
    sampler, learner = map(request.getfixturevalue, names)
    return sampler, learner


def token_ids(seed: int, count: int) -> Int32s:
    return np.random.default_rng(seed).integers(100, 40_000, count).astype(np.int32)


def requests(lengths: Sequence[int], *, seed: int = 0, prompt_seed: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(
            request_id=f"request-{index}",
            prompt=Prompt(prompt_id=str(index), text="", token_ids=token_ids(prompt_seed + index, length)),
            seed=seed + index,
        )
        for index, length in enumerate(lengths)
    ]


def finish(sampler: "Sampler", most_steps: int = 200) -> list[Completion]:
    """Everything that is running, in order of the requests."""
    completions: list[Completion] = []
    for _ in range(most_steps):
        if not sampler.has_work:
            return sorted(completions, key=lambda completion: completion.request_id)
        completions += sampler.step()
    raise AssertionError(f"still running after {most_steps} steps")


def sample(sampler: "Sampler", wanted: Sequence[SampleRequest]) -> list[Completion]:
    for request in wanted:
        sampler.submit(request)
    return finish(sampler)


def largest_gap(learner: Learner, completions: Sequence[Completion], decoding: Decoding = UNCHANGED) -> float:
    """Nats between what the sampler reported and what the learner makes of the same tokens."""
    return max(
        float(np.abs(completion.behavior_logprobs_T - own).max())
        for completion in completions
        for own in [learner.logprobs(completion.token_ids_T, completion.sampled_T, decoding)]
    )


def test_it_serves_nobody_before_a_verified_push(engine: "Sampler", learner: Learner) -> None:
    with pytest.raises(WorkerLost, match="no verified weight push"):
        engine.submit(requests([4])[0])
    assert not engine.has_work


def test_what_it_reports_is_what_the_learner_computes(pushed: tuple["Sampler", Learner]) -> None:
    sampler, learner = pushed
    wanted = requests([1, 3, 7, 30, 64, 200])
    completions = sample(sampler, wanted)
    assert largest_gap(learner, completions) < MAX_GAP
    for request, completion in zip(wanted, completions, strict=True):
        assert completion.prompt is request.prompt
        assert np.array_equal(
            completion.token_ids_T[: completion.num_prompt_tokens], request.prompt.token_ids
        )
        assert 1 <= completion.num_completion_tokens <= MAX_NEW_TOKENS
        assert completion.truncated == (completion.token_ids_T[-1] != 2)
        spans = (VersionSpan(policy_version=learner.version, start=0, stop=completion.num_completion_tokens),)
        assert completion.version_spans == spans
        assert not completion.behavior_logprobs_T[~completion.sampled_T].any()


def test_log_probs_are_of_the_distribution_that_was_sampled_from(
    warm_engine: "Sampler", learner: Learner
) -> None:
    """At another temperature, and far from those at temperature 1: a learner that forgot it would notice."""
    warm_engine.pull_weights(learner.manifest())
    completions = sample(warm_engine, requests([3, 40]))
    assert largest_gap(learner, completions, Decoding(temperature=0.7)) < MAX_GAP
    assert largest_gap(learner, completions) > 0.1


@pytest.mark.parametrize("decoding", TRUNCATED, ids=["top_k", "top_p", "min_p", "all"])
def test_log_probs_account_for_what_is_cut_off(
    sampler: "Sampler", learner: Learner, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same engine, asked to sample in other ways: vLLM takes them with each request."""
    monkeypatch.setattr(sampler, "_rollout", sampler._rollout.model_copy(update=asdict(decoding)))
    completions = sample(sampler, requests([3, 40, 7, 9]))
    assert largest_gap(learner, completions, decoding) < MAX_GAP
    assert largest_gap(learner, completions, decoding.untruncated) > 0.05


def test_greedy_decoding_takes_the_likeliest_token_and_is_certain(
    sampler: "Sampler", learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_rollout", sampler._rollout.model_copy(update={"temperature": 0.0}))
    for completion in sample(sampler, requests([3, 40])):
        likeliest_T = learner.likeliest(completion)
        assert np.array_equal(completion.token_ids_T[completion.sampled_T], likeliest_T)
        assert not completion.behavior_logprobs_T.any()


def test_a_stop_text_ends_a_completion(
    sampler: "Sampler", learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    [whole] = sample(sampler, requests([5]))
    monkeypatch.setattr(sampler, "_rollout", sampler._rollout.model_copy(update={"stop": [whole.text[3:6]]}))
    [stopped] = sample(sampler, requests([5]))
    assert not stopped.truncated
    assert 1 <= stopped.num_completion_tokens < whole.num_completion_tokens
    assert np.array_equal(stopped.token_ids_T, whole.token_ids_T[: len(stopped.token_ids_T)])


@pytest.mark.parametrize("length", [5, 2 * BLOCK_TOKENS + 20], ids=["short", "cached"])
def test_new_weights_answer_the_same_prompts_anew(pushed: tuple["Sampler", Learner], length: int) -> None:
    """Short prompts show a tied output head that kept its old packed copy; prompts of several blocks show
    keys and values that the prefix cache kept of the old weights."""
    sampler, learner = pushed
    wanted = requests([length] * 3)
    sample(sampler, wanted)
    again = sample(sampler, wanted)  # from the prefix cache, where the prompt is long enough
    assert largest_gap(learner, again) < MAX_GAP
    learner.change()
    assert largest_gap(learner, again) > 0.1, "the push below would prove nothing"
    report = sampler.pull_weights(learner.manifest())
    assert report.probe_gap < MAX_GAP
    completions = sample(sampler, wanted)
    assert largest_gap(learner, completions) < MAX_GAP
    assert {completion.policy_version for completion in completions} == {learner.version}


def test_a_prompt_shared_with_a_running_request_is_not_answered_from_old_weights(
    pushed: tuple["Sampler", Learner],
) -> None:
    """A running request holds its blocks through the push; a later one must not find them in the cache."""
    sampler, learner = pushed
    first, second = requests([2 * BLOCK_TOKENS + 20] * 2)
    sampler.submit(first)
    for _ in range(5):
        sampler.step()
    learner.change()
    sampler.pull_weights(learner.manifest())
    sampler.submit(replace(second, prompt=first.prompt))
    completions = finish(sampler)
    assert largest_gap(learner, completions[1:]) < MAX_GAP


def test_an_update_in_flight_leaves_spans_without_gaps(pushed: tuple["Sampler", Learner]) -> None:
    sampler, learner = pushed
    wanted = requests([3, 9, 20, 40])
    for request in wanted:
        sampler.submit(request)
    old, finished = learner.version, []
    for _ in range(8):
        finished += sampler.step()
    learner.change()
    sampler.pull_weights(learner.manifest())
    completions = sorted(finished + finish(sampler), key=lambda completion: completion.request_id)
    assert [completion.request_id for completion in completions] == [r.request_id for r in wanted]
    for completion in completions:
        spans = completion.version_spans
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == completion.num_completion_tokens
        assert completion.policy_version == old
    both = [c for c in completions if [span.policy_version for span in c.version_spans] == [old, old + 1]]
    assert len(both) >= 3, "some may end early, not most"
    for completion in both:
        behavior, own = (
            values[completion.num_prompt_tokens :]
            for values in (
                completion.behavior_logprobs_T,
                learner.logprobs(completion.token_ids_T, completion.sampled_T),
            )
        )
        changed = completion.version_spans[0].stop
        gap = np.abs(behavior - own)
        assert gap[changed:].max() < MAX_GAP, "tokens under the new version are the new policy's"
        assert gap[:changed].max() > 0.05, "tokens under the old version keep the old policy's log-probs"


def test_an_update_that_resamples_starts_what_runs_again_with_the_same_seeds(
    sampler: "Sampler", learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_keeps_running", False)
    wanted = requests([3, 9, 20, 40])
    for request in wanted:
        sampler.submit(request)
    old, finished = learner.version, []
    for _ in range(8):
        finished += sampler.step()
    learner.change()
    report = sampler.pull_weights(learner.manifest())
    redone = finish(sampler)
    assert len(redone) >= 3, "some may end early, not most"
    assert 6 * len(redone) <= report.redone_tokens <= 8 * len(redone)  # a token a step, one or two in flight
    for completion in redone:
        (span,) = completion.version_spans
        assert (span.policy_version, span.start, span.stop) == (old + 1, 0, completion.num_completion_tokens)
    assert {c.version_spans[-1].policy_version for c in finished} <= {old}
    assert largest_gap(learner, redone) < MAX_GAP
    anew = {c.request_id: c.token_ids_T.tolist() for c in sample(sampler, wanted)}
    assert {c.request_id: c.token_ids_T.tolist() for c in redone}.items() <= anew.items()
    assert sorted(c.request_id for c in [*finished, *redone]) == [request.request_id for request in wanted]


def test_an_update_that_drains_lets_what_runs_finish_under_the_old_weights(
    sampler: "Sampler", learner: Learner
) -> None:
    old, wanted = learner.version, requests([3, 9, 20, 40], seed=3)
    learner.change()
    manifest = learner.manifest()
    loop = EngineLoop(sampler)
    try:
        with ThreadPoolExecutor() as threads:
            running = threads.submit(lambda: list(loop.sample(wanted)))
            while not loop.call(lambda: sampler.has_work):
                assert not running.done(), "all was over before the push"
            assert loop.call(lambda: sampler.pull_weights(manifest), drain_s=60.0).redone_tokens == 0
            finished, after = running.result(), list(loop.sample(requests([3, 9], seed=9)))
    finally:
        loop.close()
    spans = [[span.policy_version for span in completion.version_spans] for completion in finished]
    assert spans == [[old]] * 4
    assert [c.version_spans[0].policy_version for c in after] == [old + 1] * 2


def test_seeds_make_sampling_repeatable(sampler: "Sampler") -> None:
    wanted = requests([4, 4, 12], seed=100)
    first, again = sample(sampler, wanted), sample(sampler, list(reversed(wanted)))
    others = sample(sampler, requests([4, 4, 12], seed=200))
    for one, same, other in zip(first, again, others, strict=True):
        assert np.array_equal(one.token_ids_T, same.token_ids_T)
        assert not np.array_equal(one.token_ids_T, other.token_ids_T)


def test_one_prompt_gives_different_completions_for_different_seeds(sampler: "Sampler") -> None:
    first, *others = requests([6] * 4)
    group = [first, *(replace(request, prompt=first.prompt) for request in others)]
    texts = {tuple(completion.token_ids_T) for completion in sample(sampler, group)}
    assert len(texts) == 4


def test_a_prompt_too_long_for_the_context_is_the_users_error(sampler: "Sampler") -> None:
    longest = MAX_MODEL_LEN - MAX_NEW_TOKENS
    with pytest.raises(UserError, match=f"raise model.max_model_len to {MAX_MODEL_LEN + 1}"):
        sampler.submit(requests([longest + 1])[0])
    assert not sampler.has_work
    assert sample(sampler, requests([longest]))[0].num_prompt_tokens == longest


def test_a_flipped_byte_names_the_tensor(pushed: tuple["Sampler", Learner]) -> None:
    sampler, learner = pushed
    manifest = learner.manifest()
    entry = next(entry for entry in manifest.tensors if "layers.1.mlp.down_proj" in entry.name)
    map_buffer(manifest.path, manifest.num_bytes)[entry.offset_bytes + 7] ^= 1
    with pytest.raises(WorkerError, match=f"tensor {entry.name} arrived with other bytes"):
        sampler.pull_weights(manifest)
    with pytest.raises(WorkerLost, match="no verified weight push"):
        sampler.submit(requests([4])[0])


def test_a_wrong_probe_names_the_gap_and_stops_the_service(sampler: "Sampler", learner: Learner) -> None:
    manifest = learner.manifest()
    wrong = manifest.probe_logprobs_T.copy()
    wrong[10] += 0.63  # of 63
    said = rf"version {learner.version} .* 1.00e-02 nats on average \(limit 3e-04\)"
    with pytest.raises(WorkerError, match=said):
        sampler.pull_weights(replace(manifest, probe_logprobs_T=wrong))
    with pytest.raises(WorkerLost, match="no verified weight push"):
        sampler.submit(requests([4])[0])


def test_a_nan_on_the_probe_is_a_mismatch(sampler: "Sampler", learner: Learner) -> None:
    manifest = learner.manifest()
    broken = manifest.probe_logprobs_T.copy()
    broken[10] = np.nan
    with pytest.raises(WorkerError, match="nan nats"):
        sampler.pull_weights(replace(manifest, probe_logprobs_T=broken))


def test_running_requests_do_not_go_on_under_weights_that_failed_the_probe(
    sampler: "Sampler", learner: Learner
) -> None:
    """Their later tokens would come from a policy that nobody knows, and be trained on. Last but one, because
    they are still running after it."""
    manifest = learner.manifest()
    sampler.submit(requests([4])[0])
    sampler.step()
    with pytest.raises(WorkerError, match="nan nats"):
        sampler.pull_weights(replace(manifest, probe_logprobs_T=manifest.probe_logprobs_T + np.nan))
    with pytest.raises(WorkerLost, match="no verified weight push"):
        sampler.step()
    sampler.pull_weights(learner.manifest())
    assert len(finish(sampler)) == 1


def test_a_damaged_push_leaves_the_engine_fit_for_the_next(pushed: tuple["Sampler", Learner]) -> None:
    sampler, learner = pushed
    manifest = learner.manifest()
    map_buffer(manifest.path, manifest.num_bytes)[0] ^= 1
    with pytest.raises(WorkerError):
        sampler.pull_weights(manifest)
    sampler.pull_weights(learner.manifest())
    assert largest_gap(learner, sample(sampler, requests([5, 9]))) < MAX_GAP


def test_fresh_adapters_sample_from_the_base(
    tiny_model: Path, adapter_engine: "Sampler", tmp_path: Path
) -> None:
    """B is 0, so what is evaluated before training is the model in the folder."""
    adapter_engine.pull_weights(AdapterLearner(tiny_model, tmp_path).manifest())
    base = Learner(tiny_model, tmp_path)
    assert largest_gap(base, sample(adapter_engine, requests([3, 40]))) < MAX_GAP


def test_adapters_that_the_engine_kept_are_refused(
    adapter_sampler: "Sampler", adapter_learner: AdapterLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM keeps an adapter whose number it knows, and says nothing."""
    from vllm.lora.model_manager import LRUCacheLoRAModelManager  # vLLM, as above

    adapter_learner.change()
    with monkeypatch.context() as patch:
        patch.setattr(LRUCacheLoRAModelManager, "remove_adapter", lambda self, adapter: False)
        with pytest.raises(
            WorkerError, match=f"version {adapter_learner.version} .* differ from the learner's"
        ):
            adapter_sampler.pull_weights(adapter_learner.manifest())
    with pytest.raises(WorkerLost, match="no verified weight push"):
        adapter_sampler.submit(requests([4])[0])


@pytest.mark.parametrize("wrong", [{"alpha": 24.0}, {"rank": 6}], ids=["alpha", "rank"])
def test_adapters_at_another_scale_are_refused(
    adapter_sampler: "Sampler", adapter_learner: AdapterLearner, wrong: dict[str, Any]
) -> None:
    assert adapter_learner.adapters is not None
    adapter_learner.change()
    manifest = adapter_learner.manifest()
    with pytest.raises(WorkerError, match="differ from the learner's"):
        adapter_sampler.pull_weights(replace(manifest, adapters=replace(adapter_learner.adapters, **wrong)))


def test_adapters_beside_a_layer_that_the_engine_has_not_are_the_users_error(
    adapter_sampler: "Sampler", adapter_learner: AdapterLearner
) -> None:
    manifest = adapter_learner.manifest()
    first, *others = manifest.tensors
    stray = replace(first, name=first.name.replace("layers.0", "layers.7"))
    with pytest.raises(UserError, match=r'cannot adapt layer model.layers.7.*; set "merged"'):
        adapter_sampler.pull_weights(replace(manifest, tensors=(stray, *others)))


def test_several_workers_take_adapters_from_one_buffer(
    adapter_sampler: "Sampler", adapter_learner: AdapterLearner
) -> None:
    """vLLM scales adapters where they lie: the next worker would find other bytes than the learner wrote."""
    adapter_learner.change()
    manifest = adapter_learner.manifest()
    adapter_sampler.pull_weights(manifest)
    verified_tensors(manifest.path, manifest.num_bytes, manifest.tensors)


def test_the_largest_rank_is_vllms(adapter_engine: "Sampler") -> None:
    from vllm.config.lora import MaxLoRARanks  # vLLM, as above

    assert max(get_args(MaxLoRARanks)) == MAX_ADAPTER_RANK


@pytest.fixture(params=["fake", "real"])
def any_engine(request: pytest.FixtureRequest) -> Engine:
    """Both engines that `EngineLoop` is tested with: what holds for one must hold for the other."""
    if request.param == "real":
        real: Sampler = request.getfixturevalue("sampler")
        return real
    fake = FakeEngine()
    fake.steps.release(10_000)
    return fake


def test_contract_every_request_finishes_once_and_then_there_is_no_work(any_engine: Engine) -> None:
    assert not any_engine.has_work
    assert list(any_engine.step() if any_engine.has_work else []) == []
    wanted = requests([3, 5, 8], seed=1)
    for request in wanted:
        any_engine.submit(request)
    finished: list[Completion] = []
    while any_engine.has_work:
        finished += any_engine.step()
    assert sorted(completion.request_id for completion in finished) == [r.request_id for r in wanted]


def test_contract_aborted_requests_end_and_give_their_ids_back(any_engine: Engine) -> None:
    wanted = requests([3, 5, 8], seed=3)
    for request in wanted:
        any_engine.submit(request)
    finished = any_engine.step()
    any_engine.abort([wanted[0].request_id, wanted[2].request_id])
    while any_engine.has_work:
        finished += any_engine.step()
    assert [completion.request_id for completion in finished] == [wanted[1].request_id]
    any_engine.submit(wanted[0])
    while any_engine.has_work:
        finished += any_engine.step()
    assert finished[-1].request_id == wanted[0].request_id


def test_contract_a_refused_request_leaves_no_work(any_engine: Engine) -> None:
    too_long = requests([MAX_MODEL_LEN])[0]  # which the fake tells by its seed, 0
    with pytest.raises(ValueError):
        any_engine.submit(too_long)
    assert not any_engine.has_work


def test_contract_a_loop_streams_to_each_caller_and_runs_calls_between_steps(any_engine: Engine) -> None:
    loop = EngineLoop(any_engine)
    try:
        first, second = requests([3, 5], seed=1), requests([4], seed=20)
        stream = loop.sample(first)
        other = loop.sample([replace(second[0], request_id="other")])
        assert loop.call(lambda: 42) == 42
        assert sorted(completion.request_id for completion in stream) == [r.request_id for r in first]
        assert [completion.request_id for completion in other] == ["other"]
        with pytest.raises(ValueError):
            list(loop.sample(requests([MAX_MODEL_LEN])))
        assert len(list(loop.sample(first))) == 2
    finally:
        loop.close()
    assert not any_engine.has_work


def test_what_finished_beside_the_probe_can_be_aborted_too(sampler: "Sampler", learner: Learner) -> None:
    """It is held back until the probe has agreed, and nobody wants it any more."""
    wanted = requests([4, 6], seed=9)
    for request in wanted:
        sampler.submit(request)
    for _ in range(MAX_NEW_TOKENS - 1):
        assert sampler.step() == []
    sampler.pull_weights(learner.manifest())
    sampler.abort([wanted[0].request_id])
    assert [completion.request_id for completion in finish(sampler)] == [wanted[1].request_id]


def test_a_push_through_the_loop_meets_running_requests_between_two_steps(
    sampler: "Sampler", learner: Learner
) -> None:
    loop = EngineLoop(sampler)
    try:
        stream = loop.sample(requests([3, 9, 20], seed=7))
        learner.change()
        manifest = learner.manifest()
        assert loop.call(lambda: sampler.pull_weights(manifest)).probe_gap < MAX_GAP
        completions = list(stream)
        assert len(completions) == 3
        assert {c.version_spans[-1].policy_version for c in completions} <= {
            learner.version - 1,
            learner.version,
        }
    finally:
        loop.close()
