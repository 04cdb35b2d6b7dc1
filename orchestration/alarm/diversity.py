"""How alike the completions of a step are. The figures do not depend on how many completions there are."""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from orchestration.alarm.profiles import Profile

NUM_DRAWS = 200
"""Pairs of words that distinct-2 is counted among: fewer than the smallest useful step has."""
CHUNK_CHARACTERS = 2000
"""That are compressed together: a dozen short completions, or a part of a long one. Longer texts compress better,
so all are compared at one length."""


def distinct_2(profiles: Sequence[Profile]) -> float | None:
    """Expected share of different pairs of words among `NUM_DRAWS` that are drawn, without putting back, from all
    completions (rarefaction, Hurlbert 1971); None of a step with fewer. A pair counts once in a completion:
    what a completion repeats itself is not measured here."""
    counts: Counter[str] = Counter()
    for profile in profiles:
        counts.update(profile.bigrams)
    total = counts.total()
    if total < NUM_DRAWS:
        return None
    # A pair that occurs c times is missed with probability C(total - c, draws) / C(total, draws).
    missed = {
        c: math.exp(_log_missed(total, c)) if total - c >= NUM_DRAWS else 0.0 for c in {*counts.values()}
    }
    return sum(1 - missed[count] for count in counts.values()) / NUM_DRAWS


def self_overlap(profiles: Sequence[Profile]) -> float | None:
    """Probability that a pair of words of one completion is in another one, of another prompt; None if there is
    one prompt only."""
    everywhere: Counter[str] = Counter()
    in_group: defaultdict[str, Counter[str]] = defaultdict(Counter)
    sizes = Counter(profile.sample.group for profile in profiles)
    for profile in profiles:
        everywhere.update(profile.bigrams)
        in_group[profile.sample.group].update(profile.bigrams)
    shares = []
    for profile in profiles:
        group = profile.sample.group
        others = len(profiles) - sizes[group]
        if others and profile.bigrams:
            met = sum(everywhere[bigram] - in_group[group][bigram] for bigram in profile.bigrams)
            shares.append(met / (others * len(profile.bigrams)))
    return math.fsum(shares) / len(shares) if shares else None


def compression(profiles: Sequence[Profile]) -> float | None:
    """Compressed size (zlib) as a share of the size, of the completions in alphabetical order, chunk by chunk; None
    of a step that does not fill one chunk."""
    text = "\n".join(sorted(profile.sample.text for profile in profiles))
    starts = range(0, len(text) - CHUNK_CHARACTERS + 1, CHUNK_CHARACTERS)
    chunks = [text[start : start + CHUNK_CHARACTERS].encode("utf-8", "surrogatepass") for start in starts]
    size = sum(map(len, chunks))
    return sum(len(zlib.compress(chunk)) for chunk in chunks) / size if size else None


def _log_missed(total: int, count: int) -> float:
    return (
        math.lgamma(total - count + 1)
        + math.lgamma(total - NUM_DRAWS + 1)
        - math.lgamma(total - count - NUM_DRAWS + 1)
        - math.lgamma(total + 1)
    )
