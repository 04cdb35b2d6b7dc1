"""What messages say about themselves, against numbers worked out by hand."""

import numpy as np
import pytest

from tests.fakes import make_completion, make_group, make_prompt, make_rollout


def test_kl_is_the_summed_difference_of_logprobs_over_sampled_tokens() -> None:
    completion = make_completion(7, 8, 9, behavior=[-1.0, -0.5, -2.0])
    rollout = make_rollout(completion, reference=[-1.5, -0.25, -4.0])
    assert rollout.kl_nats == pytest.approx(0.5 - 0.25 + 2.0)


def test_kl_is_summed_in_double_precision() -> None:
    """In float32, 4096 terms of 1e-4 beside one of 1000 would be lost in part."""
    completion = make_completion(*range(4097), behavior=[1000.0] + [1e-4] * 4096)
    rollout = make_rollout(completion, reference=[0.0] * 4097)
    assert rollout.kl_nats == pytest.approx(1000.4096, abs=1e-6)


def test_a_completion_is_as_old_as_its_oldest_token() -> None:
    assert make_completion(5, 6, versions=[3, 4]).policy_version == 3
    assert make_completion(5, 6, versions=[4, 3]).policy_version == 3


def test_a_group_is_as_old_as_its_oldest_rollout_and_counts_all_tokens() -> None:
    prompt = make_prompt(1, 2, 3)
    completions = [
        make_completion(5, prompt=prompt, versions=[6]),
        make_completion(5, 6, prompt=prompt, versions=[4, 6]),
    ]
    group = make_group("g", [make_rollout(completion) for completion in completions])
    assert group.policy_version == 4
    assert group.num_tokens == (3 + 1) + (3 + 2)
    assert group.prompt is prompt


def test_the_nll_of_a_group_is_the_mean_over_all_its_sampled_tokens() -> None:
    """Long completions weigh more (the mean of the two means would be 3.75), and prompts not at all."""
    prompt = make_prompt(1, 2, 3)
    long, short = make_completion(7, 8, prompt=prompt), make_completion(9, prompt=prompt)
    group = make_group(
        "g", [make_rollout(long, reference=[-1.0, -2.0]), make_rollout(short, reference=[-6.0])]
    )
    assert group.reference_nll == 3.0


def test_tokens_are_counted_by_who_wrote_them() -> None:
    completion = make_completion(7, 8, 9, prompt=make_prompt(1, 2))
    assert (completion.num_prompt_tokens, completion.num_completion_tokens) == (2, 3)
    assert np.array_equal(completion.token_ids_T, [1, 2, 7, 8, 9])
