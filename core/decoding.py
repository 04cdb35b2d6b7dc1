"""How the next token is chosen, as data: what the sampler does to logits, and the learner must do as well."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """What is done to logits before sampling. The default leaves them as they are."""

    temperature: float = 1.0
    top_k: int | None = None
    """Keep the so many likeliest tokens."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together have at least this probability: nucleus sampling."""
    min_p: float = 0.0
    """Keep tokens at least this times as likely as the likeliest."""

    @property
    def truncates(self) -> bool:
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0

    @property
    def untruncated(self) -> "Decoding":
        """The same temperature over the whole vocabulary: a reference must give every token a chance."""
        return Decoding(temperature=self.temperature)


UNCHANGED = Decoding()
"""Temperature 1 over the whole vocabulary."""
