"""Ratings and JSON-lines files: good rows come out whole, bad lines are named, no text is in two splits."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.ratings import (
    RATINGS_FILE,
    SPLITS,
    TEXTS_FILE,
    RatedText,
    first_words,
    load_jsonl,
    load_ratings,
    split_ratings,
)

FRACTIONS = {"train": 0.8, "heldout": 0.1, "prompts": 0.1}


def write_ratings(folder: Path, *, texts: str, ratings: str) -> Path:
    (folder / TEXTS_FILE).write_bytes(texts.encode("utf-8", "surrogateescape"))
    (folder / RATINGS_FILE).write_text(ratings)
    return folder


def rated(text: str) -> RatedText:
    return RatedText(id=text, text=text, rating=0.0, ratings=(0,))


def test_a_row_holds_the_text_as_written_and_every_rater(tmp_path: Path) -> None:
    folder = write_ratings(
        tmp_path,
        texts="1\t0.666666667\t  It 's  fun &amp; short . \r\n2\t-4\tAwful\n",
        ratings="1\t0.666667\t1.2\t[2, 1, -1]\r\n2\t-4\t0\t[-4]",
    )
    rows, malformed = load_ratings(folder)
    assert rows == [
        RatedText(id="1", text="It 's  fun &amp; short .", rating=0.666666667, ratings=(2, 1, -1)),
        RatedText(id="2", text="Awful", rating=-4.0, ratings=(-4,)),
    ]
    assert malformed == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2\t1", "2 columns between tabs instead of 3"),
        ("2\t1\tone\ttoo many", "4 columns"),
        ("2\tgood\tA text", "could not convert string to float: 'good'"),
        ("2\tnan\tA text", "mean nan is not the mean"),
        ("2\t3\tA text", "mean 3 is not the mean of the single ratings of id 2"),
        ("2\t1\t   ", "id 2 has an empty text"),
        ("1\t1\tAgain", "id 1 was already used"),
        ("9\t1\tA text", "id 9 has no valid line of single ratings"),
        ("2\t1\tcaf\udce9", "can't decode byte 0xe9"),
    ],
)
def test_a_malformed_text_line_is_reported_and_skipped(tmp_path: Path, line: str, reason: str) -> None:
    folder = write_ratings(
        tmp_path,
        texts=f"1\t1\tGood\n\n{line}\n3\t1\tFine\n",
        ratings="1\t1\t0\t[1]\n2\t1\t0\t[1]\n3\t1\t0\t[1]\n",
    )
    rows, malformed = load_ratings(folder)
    assert [row.text for row in rows] == ["Good", "Fine"]
    assert len(malformed) == 1
    assert str(malformed[0]).startswith(f"{folder / TEXTS_FILE}:3: ")
    assert reason in malformed[0].reason


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ("[1, 5]", "single rating 5 is not a whole number from -4 to 4"),
        ("[1.5]", "single rating 1.5 is not"),
        ("[true]", "single rating True is not"),
        ("[]", "no list of single ratings"),
        ("3", "no list of single ratings but '3'"),
        ("[1, 2", "Expecting"),
    ],
)
def test_bad_single_ratings_are_reported_and_take_their_text_along(
    tmp_path: Path, listed: str, reason: str
) -> None:
    folder = write_ratings(
        tmp_path, texts="1\t1\tGood\n2\t1\tFine\n", ratings=f"1\t1\t0\t[1]\n2\t1\t0\t{listed}\n"
    )
    rows, malformed = load_ratings(folder)
    assert [row.id for row in rows] == ["1"]
    assert [(bad.path.name, bad.line) for bad in malformed] == [(RATINGS_FILE, 2), (TEXTS_FILE, 2)]
    assert reason in malformed[0].reason


def test_missing_or_useless_files_raise_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{RATINGS_FILE}: cannot be read .No such file"):
        load_ratings(tmp_path)
    write_ratings(tmp_path, texts="nonsense\n", ratings="1\t1\t0\t[1]\n")
    with pytest.raises(
        UserError, match=f"{TEXTS_FILE}: no line of it could be used, the first because of: .*:1:"
    ):
        load_ratings(tmp_path)


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(max_size=8), max_size=8),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_splits_are_disjoint_and_independent_of_order_and_company(
    texts: list[str], seed: int, order: random.Random
) -> None:
    rows = [rated(text) for text in texts]
    splits = split_ratings(rows, seed=seed, fractions=FRACTIONS)
    assert sorted(row.id for part in splits.values() for row in part) == sorted(texts)

    home = {row.text: name for name, part in splits.items() for row in part}
    order.shuffle(rows)
    for name, part in split_ratings(rows, seed=seed, fractions=FRACTIONS).items():
        assert all(home[row.text] == name for row in part)
    for text in texts:
        assert split_ratings([rated(text)], seed=seed, fractions=FRACTIONS)[home[text]] == [rated(text)]


def test_the_same_words_in_other_spacing_or_punctuation_share_a_split() -> None:
    variants = ["Pots & pans, a mess.", "  pots &amp; PANS a   mess", "'Pots & pans -- a mess'"]
    for seed in range(50):
        splits = split_ratings(map(rated, variants), seed=seed, fractions=FRACTIONS)
        assert sorted(len(part) for part in splits.values()) == [0, 0, 3]


def test_splits_follow_the_fractions_and_the_seed() -> None:
    rows = [rated(f"text {number}") for number in range(4000)]
    splits = split_ratings(rows, seed=0, fractions={"train": 0.5, "heldout": 0.5, "prompts": 0.0})
    assert tuple(splits) == SPLITS
    assert abs(len(splits["train"]) - 2000) < 160  # 5 standard deviations
    assert splits["prompts"] == []
    other = split_ratings(rows, seed=1, fractions={"train": 0.5, "heldout": 0.5, "prompts": 0.0})
    shared = {row.id for row in splits["train"]} & {row.id for row in other["train"]}
    assert abs(len(shared) - 1000) < 160


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 1.0}, "give one for each of train, heldout, prompts"),
        ({"train": 0.8, "heldout": 0.1, "prompts": 0.2}, "must add up to 1"),
        ({"train": 1.2, "heldout": -0.1, "prompts": -0.1}, "must not be negative"),
    ],
)
def test_impossible_fractions_are_refused(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_ratings([], seed=0, fractions=fractions)


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [("A  bold,\tnew film .", 3, "A bold, new"), ("Short", 4, "Short"), ("", 1, "")],
)
def test_first_words(text: str, count: int, words: str) -> None:
    assert first_words(text, count) == words


def test_jsonl_rows_keep_their_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9", "topic": 1}\r\n\n{"prompt": ""}')
    assert load_jsonl(path, ("prompt",)) == [{"prompt": "café", "topic": 1}, {"prompt": ""}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "not a JSON object: Expecting ',' delimiter at column 15"),
        (b'["prompt"]', "a JSON list where an object was expected"),
        (b'{"promt": "a"}', r"no column 'prompt' \(it has 'promt'\)"),
        (b"{}", r"no column 'prompt' \(it has none\)"),
        (b'{"prompt": "\xff"}', "can't decode byte 0xff"),
    ],
)
def test_a_malformed_jsonl_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=f"prompts.jsonl:3: .*{message}"):
        load_jsonl(path, ("prompt",))


def test_a_jsonl_file_that_is_missing_empty_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent.jsonl: cannot be read .No such file"):
        load_jsonl(tmp_path / "absent.jsonl", ())
    with pytest.raises(UserError, match="cannot be read .Is a directory"):
        load_jsonl(tmp_path, ())
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="empty.jsonl: the dataset has no rows"):
        load_jsonl(tmp_path / "empty.jsonl", ())
