import pytest

from orchestration.alarm.languages import language_of

ENGLISH = (
    "The film is a gentle story about two people who have lost their way, and it is told with great care."
)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        ("Der Film ist ein wunderbares Meisterwerk, das ich jedem empfehle, der gern ins Kino geht.", "de"),
        ("Ce film est un chef-d'oeuvre absolu et les acteurs sont vraiment formidables.", "fr"),
        ("这部电影真是太精彩了,我强烈推荐给大家观看。", "zh"),
    ],
)
def test_a_sentence_is_told(text: str, language: str) -> None:
    assert language_of(text) == language


def test_what_cannot_be_told_is_none() -> None:
    assert language_of("") is None
    assert language_of("!!!") is None


def test_the_end_of_a_long_text_decides() -> None:
    german = (
        "Und dann sagte er, dass er nie wieder in dieses Haus zurückkehren werde, weil es ihm nicht gefiel. "
    )
    assert language_of(ENGLISH * 10 + german * 4) == "de"
