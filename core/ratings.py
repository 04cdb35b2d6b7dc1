"""Human ratings and JSON-lines datasets: files in, checked rows out, bad lines named by file and line."""

import hashlib
import html
import json
import math
import statistics
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.errors import UserError

TEXTS_FILE = "movieReviewSnippets_GroundTruth.txt"
"""Tab-separated: id, mean rating, text."""
RATINGS_FILE = "movieReviewSnippets_anonDataRatings.txt"
"""Tab-separated: id, mean rating, standard deviation, list of the single ratings."""

LARGEST_RATING = 4
"""Raters chose whole numbers from -4 (extremely negative) to 4 (extremely positive)."""
MEAN_TOLERANCE = 0.01
"""The files print means with 9 to 12 digits; a larger gap means that two lines do not belong together."""

SPLITS = ("train", "heldout", "prompts")
"""Reward-model training, its evaluation, and the texts whose first words become prompts."""

SPLIT_FRACTIONS = {"train": 0.7, "heldout": 0.15, "prompts": 0.15}
"""Leaves 1,590 of the 10,605 snippets for prompts, of which a comparison holds out some again."""

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedText:
    """One text, and what people thought of it."""

    id: str
    text: str
    """As in the file, less the white space around it: HTML escapes and odd spacing are kept."""
    rating: float
    """Mean of `ratings`, from -4 to 4."""
    ratings: tuple[int, ...]
    """What each rater said, in the file's order; raters are anonymous and differ from text to text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MalformedLine:
    """A line that was skipped, and why. Lines count from 1."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def load_ratings(folder: Path) -> tuple[list[RatedText], list[MalformedLine]]:
    """Every text that has a valid line in both files, in the file's order, and the lines that were skipped.

    Raises `UserError` when a file is missing or unreadable, or when no line of it is valid.
    """
    malformed: list[MalformedLine] = []
    ratings = _parse_lines(folder / RATINGS_FILE, 4, _parse_ratings, malformed)

    def parse_text(columns: list[str]) -> tuple[str, RatedText]:
        row = _parse_text(columns, ratings)
        return row.id, row

    rows = _parse_lines(folder / TEXTS_FILE, 3, parse_text, malformed)
    return list(rows.values()), malformed


def split_ratings(
    rows: Iterable[RatedText], *, seed: int, fractions: Mapping[str, float]
) -> dict[str, list[RatedText]]:
    """The rows of each of `SPLITS`, about `fractions` of them each.

    A row's split follows from the seed and its own letters and digits alone, so it does not depend on the
    other rows or on their order, and the same words are never in two splits.
    """
    if set(fractions) != set(SPLITS):
        raise UserError(f"fractions name {sorted(fractions)}: give one for each of {', '.join(SPLITS)}")
    if min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-9):
        raise UserError(f"fractions {dict(fractions)} must not be negative and must add up to 1")
    splits: dict[str, list[RatedText]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[_split_of(row.text, seed, fractions)].append(row)
    return splits


def first_words(text: str, count: int) -> str:
    """The first `count` words with single spaces between them; all words of a shorter text."""
    assert count >= 1, count
    return " ".join(text.split()[:count])


def load_jsonl(path: Path, required: tuple[str, ...]) -> list[dict[str, object]]:
    """The rows of a JSON-lines file; see `number_jsonl`."""
    return [row for _, row in number_jsonl(path, required)]


def number_jsonl(path: Path, required: tuple[str, ...]) -> list[tuple[int, dict[str, object]]]:
    """(line, row) of a JSON-lines file, each row an object with at least the `required` columns.

    Empty lines are passed over. Raises `UserError` that names the file, and the line, for anything else.
    """
    rows = []
    for number, line in _lines(path):
        try:
            rows.append((number, _parse_row(line, required)))
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}; correct or remove this line") from error
    if not rows:
        raise UserError(f"{path}: the dataset has no rows; give it one JSON object a line")
    return rows


def _parse_lines(
    path: Path,
    num_columns: int,
    parse: Callable[[list[str]], tuple[str, Row]],
    malformed: list[MalformedLine],
) -> dict[str, Row]:
    """The rows of a tab-separated file by id; lines for which `parse` raises go to `malformed`."""
    rows: dict[str, Row] = {}
    for number, line in _lines(path):
        try:
            columns = line.decode().split("\t")
            if len(columns) != num_columns:
                raise ValueError(f"{len(columns)} columns between tabs instead of {num_columns}")
            row_id, row = parse(columns)
            if row_id in rows:
                raise ValueError(f"id {row_id} was already used on an earlier line")
            rows[row_id] = row
        except ValueError as error:
            malformed.append(MalformedLine(path=path, line=number, reason=str(error)))
    if not rows:
        first = f", the first because of: {malformed[0]}" if malformed else ""
        raise UserError(f"{path}: no line of it could be used{first}; fetch the data again with `make setup`")
    return rows


def _parse_ratings(columns: list[str]) -> tuple[str, tuple[int, ...]]:
    row_id, _mean, _deviation, listed = columns
    ratings = json.loads(listed)
    if not isinstance(ratings, list) or not ratings:
        raise ValueError(f"no list of single ratings but {listed!r}")
    for rating in ratings:
        if type(rating) is not int or abs(rating) > LARGEST_RATING:
            raise ValueError(f"single rating {rating!r} is not a whole number from -4 to 4")
    return row_id, tuple(ratings)


def _parse_text(columns: list[str], ratings: Mapping[str, tuple[int, ...]]) -> RatedText:
    row_id, mean, text = columns
    rating = float(mean)
    if row_id not in ratings:
        raise ValueError(f"id {row_id} has no valid line of single ratings")
    if not abs(rating - statistics.fmean(ratings[row_id])) <= MEAN_TOLERANCE:
        raise ValueError(f"mean {mean} is not the mean of the single ratings of id {row_id}")
    if not text.strip():
        raise ValueError(f"id {row_id} has an empty text")
    return RatedText(id=row_id, text=text.strip(), rating=rating, ratings=ratings[row_id])


def _split_of(text: str, seed: int, fractions: Mapping[str, float]) -> str:
    digest = hashlib.sha256(f"{seed}\n{_letters_and_digits(text)}".encode()).digest()
    place = int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float, and always below 1
    names = [name for name in SPLITS if fractions[name] > 0]
    edge = 0.0
    for name in names[:-1]:
        edge += fractions[name]
        if place < edge:
            return name
    return names[-1]


def _letters_and_digits(text: str) -> str:
    """What stays the same when a text is quoted, re-spaced, escaped or printed in capitals."""
    plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    return "".join(character for character in plain if character.isalnum())


def _parse_row(line: bytes, required: tuple[str, ...]) -> dict[str, object]:
    try:
        row = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON object: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__} where an object was expected")
    missing = [column for column in required if column not in row]
    if missing:
        has = ", ".join(map(repr, row)) or "none"
        raise ValueError(f"no column {', '.join(map(repr, missing))} (it has {has})")
    return row


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Line number from 1 and bytes of each line that is not empty, without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the path of the dataset"
        ) from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [(number, line.rstrip(b"\r")) for number, line in enumerate(lines, start=1) if line.strip()]
