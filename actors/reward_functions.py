"""Reward functions that ship with Leash, in TRL's signature."""

from typing import Any


def vader_sentiment(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Sentiment of prompt and completion in [-1, 1] by the VADER lexicon (Hutto and Gilbert, ICWSM 2014).

    A lexicon and a few rules, no model: weak, but independent of any reward model.
    """
    # Optional: only recipes that name this function need the package.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [
        float(analyzer.polarity_scores(prompt + completion)["compound"])
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
