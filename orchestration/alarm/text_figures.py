"""What one text says about itself: words, phrases, repetition, kinds of characters. Pure functions."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

LONGEST_PHRASE = 4
"""Words. Longer ones that become frequent contain shorter ones that do, too."""
REPEATED_LENGTH = 3
"""Words. Pairs recur in good prose ("of the"); three in a row seldom do within one completion."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+(?:['\u2019]\w+)*|[^\w\s]")
"""A word, one punctuation mark, or one sign of Chinese and Japanese, which put no spaces between words."""
_CONTROL = {"Cc", "Cf", "Co", "Cn", "Cs"}
"""Unicode categories: control, format, private use, unassigned, surrogates."""


def words_of(text: str) -> list[str]:
    """Words and punctuation marks, in lower case and in order."""
    return _WORD.findall(text.lower())


def ngrams(words: Sequence[str], length: int) -> list[str]:
    """All runs of so many words."""
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]


def phrases_of(words: Sequence[str]) -> frozenset[str]:
    """The phrases of 1 to `LONGEST_PHRASE` words in a text."""
    return frozenset(gram for length in range(1, LONGEST_PHRASE + 1) for gram in ngrams(words, length))


def repetition(words: Sequence[str]) -> float:
    """Share of the 3-grams that have occurred before in the same text; 0 of a text too short to have any."""
    grams = ngrams(words, REPEATED_LENGTH)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def kinds_of_characters(text: str) -> Counter[str]:
    """How many characters are `space`, `control`, `other` (digits, punctuation, symbols), or letters of a script,
    by its name in capitals."""
    kinds: Counter[str] = Counter()
    for char, count in Counter(text).items():
        kinds[_kind_of(char)] += count
    return kinds


def num_letters(kinds: Counter[str]) -> int:
    return sum(count for kind, count in kinds.items() if kind.isupper())


def non_alphabetic(kinds: Counter[str]) -> float:
    """Share of the characters, spaces left out, that are no letters; 0 of an empty text."""
    visible = kinds.total() - kinds["space"]
    return 1 - num_letters(kinds) / visible if visible else 0.0


def unusual_characters(kinds: Counter[str], usual_scripts: frozenset[str]) -> float:
    """Share of the characters that are control characters or letters of other scripts; 0 of an empty text."""
    unusual = kinds["control"] + sum(
        count for kind, count in kinds.items() if kind.isupper() and kind not in usual_scripts
    )
    return unusual / kinds.total() if kinds else 0.0


@lru_cache(maxsize=1 << 16)
def _kind_of(char: str) -> str:
    """The script of a letter is the first word of its name in Unicode, as in LATIN SMALL LETTER A. Marks, such as
    the vowels of Hindi, are letters here."""
    category = unicodedata.category(char)
    if char.isspace():
        return "space"
    if category in _CONTROL or char == "\ufffd":
        return "control"
    if category[0] in "LM":
        return unicodedata.name(char, "UNNAMED").split()[0].split("-")[0]
    return "other"
