"""What flows through Leash, in order: Prompt -> Completion -> Rollout -> RolloutGroup.

The next noun, `Batch`, is made of tensors and belongs to the learner alone. Everything here is
NumPy and frozen, and whole when it is born: a later stage makes the next type.

Dimension key: T token positions of one sequence (prompt, then completion).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One input, tokenised once: nothing downstream tokenises it again."""

    prompt_id: str
    text: str
    token_ids: Int32s
    """int32, one per prompt token."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The dataset's other columns, handed to reward functions by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One completion to sample. The seed makes a retry well defined."""

    request_id: str
    prompt: Prompt
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens `start` to `stop` (exclusive, counted in completion tokens) came from one policy version."""

    policy_version: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample from the policy."""

    request_id: str
    prompt: Prompt
    token_ids_T: Int32s
    """[T] int32: prompt, then completion."""
    sampled_T: Bools
    """[T] bool: True where the policy sampled the token; only these are trained on."""
    behavior_logprobs_T: Float32s
    """[T] float32, nats: log-probability of the token under the distribution that it was sampled
    from, as the sampler reported it; 0 where `sampled_T` is False."""
    version_spans: tuple[VersionSpan, ...]
    """Which policy version sampled which tokens, in order, without gaps."""
    text: str
    """The completion's text, special tokens left out."""
    truncated: bool
    """True if the completion hit the token limit before it ended by itself."""

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids_T) - len(self.prompt.token_ids)

    @property
    def policy_version(self) -> int:
        """The oldest version that sampled any of the tokens: what the lag is counted from."""
        return min(span.policy_version for span in self.version_spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A completion that a dataset holds: no policy of ours sampled it, so nobody reported log-probs."""

    prompt: Prompt
    token_ids_T: Int32s
    """[T] int32: prompt, then completion."""
    sampled_T: Bools
    """[T] bool: True on the completion, as if a policy had sampled it."""
    text: str
    """The completion's text."""
    score: float
    """How people rated it; of a preference without ratings 1 for the chosen one, 0 for the rejected one."""

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids_T) - len(self.prompt.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationGroup:
    """All demonstrations of one prompt that a step learns from."""

    group_id: str
    demonstrations: tuple[Demonstration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A completion, scored by the reference and by every reward."""

    completion: Completion
    reference_logprobs_T: Float32s
    """[T] float32, nats: the same tokens under the frozen reference; 0 where not sampled."""
    rewards: Mapping[str, float]
    """One reward per source, unweighted."""
    score: float
    """The weighted sum of the rewards: what the policy is trained on, before the KL penalty."""

    @property
    def kl_nats(self) -> float:
        """Estimate of KL(policy || reference) of this sequence: the k1 estimator, summed."""
        return float((self.completion.behavior_logprobs_T - self.reference_logprobs_T).sum(dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt that one step trains on. Kept or dropped as a whole."""

    group_id: str
    rollouts: tuple[Rollout, ...]

    @property
    def prompt(self) -> Prompt:
        return self.rollouts[0].completion.prompt

    @property
    def policy_version(self) -> int:
        return min(rollout.completion.policy_version for rollout in self.rollouts)

    @property
    def reference_nll(self) -> float:
        """Mean negative log-likelihood of the completions' tokens under the reference, in nats."""
        logprobs = np.concatenate([r.reference_logprobs_T[r.completion.sampled_T] for r in self.rollouts])
        return -float(logprobs.mean(dtype=np.float64))

    @property
    def num_tokens(self) -> int:
        """All tokens, prompt included, of all rollouts."""
        return sum(len(rollout.completion.token_ids_T) for rollout in self.rollouts)
