"""What shows a reader that an alarm is right: the phrases that spread, or a completion."""

from collections.abc import Callable, Sequence

from orchestration.alarm.phrases import grown_phrases
from orchestration.alarm.profiles import Profile
from orchestration.alarm.signals import Habits, gold_of
from orchestration.alarm.text_figures import non_alphabetic, unusual_characters
from orchestration.printable import printable

EXCERPT_CHARACTERS = 120

SHOWS: dict[str, Callable[[Profile, Habits], float]] = {
    "repetition": lambda profile, _: profile.repetition,
    "non_alphabetic": lambda profile, _: non_alphabetic(profile.kinds),
    "unusual_characters": lambda profile, habits: unusual_characters(profile.kinds, habits.scripts),
    "language_switch": lambda profile, habits: profile.language not in (None, habits.language),
    "reference_nll": lambda profile, _: profile.sample.reference_nll or 0.0,
    "gold_correlation": lambda profile, habits: -gold_of(profile, habits),
    "gold_gain": lambda profile, habits: -gold_of(profile, habits),
    "gold_drawdown": lambda profile, habits: -gold_of(profile, habits),
}
"""What is largest in the completion that shows a signal best; of the other signals, the score is."""
SPREADING: tuple[str, ...] = ("phrase_growth", "self_overlap", "distinct_2", "compression")
"""Signals that phrases show better than a completion does."""


def evidence(name: str, profiles: Sequence[Profile], habits: Habits) -> str:
    """A sentence that a terminal may show, whatever the policy wrote."""
    if name in SPREADING and (phrases := grown_phrases(profiles, habits.phrases)):
        return printable("; ".join(map(str, phrases)))
    shows = SHOWS.get(name, _score)
    sample = max(profiles, key=lambda profile: shows(profile, habits)).sample
    text = printable(" ".join(sample.text.split()))
    cut = f"{text[:EXCERPT_CHARACTERS]}..." if len(text) > EXCERPT_CHARACTERS else text
    return f'With a score of {sample.score:.2f}: "{cut}"'


def _score(profile: Profile, habits: Habits) -> float:
    return profile.sample.score
