"""The recipe's sampling keys -> how logits become what is sampled from."""

from actors.config import RolloutConfig
from core.decoding import UNCHANGED, Decoding


def decoding_of(rollout: RolloutConfig) -> Decoding:
    """What the rollout workers do to logits, for whoever must compute the same log-probs. Greedy decoding has
    none to compare; then texts are measured at temperature 1."""
    if rollout.temperature == 0:
        return UNCHANGED
    return Decoding(
        temperature=rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p, min_p=rollout.min_p
    )
