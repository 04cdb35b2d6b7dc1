"""The door to `tokenizers`: what a single token says."""

from functools import cache
from typing import Any

from tokenizers import Tokenizer

from core.errors import UserError
from core.hub import HubModel, cached_folder
from orchestration.assets import resolve_model

_WORD_START = "▁"
"""How SentencePiece writes the space before a word, which decoding a single token drops."""


class TokenTexts:
    """The tokens of one model."""

    def __init__(self, model: str, revision: str | None) -> None:
        """`model` as a recipe names it; of one on the Hub what this machine has of it. Raises `UserError` if its
        tokenizer cannot be read."""
        folder = cached_folder(HubModel(model, revision)) if revision else resolve_model(model)
        file = folder / "tokenizer.json"
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more precise
            raise UserError(f"{file}: cannot be read ({error})") from None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a mark such as the end of the text."""
        return token_id in self._special

    def text(self, token_id: int) -> str:
        """What the token says by itself; a replacement character for a part of a letter."""
        text = str(self._tokenizer.decode([token_id], skip_special_tokens=False))
        piece = self._tokenizer.id_to_token(token_id) or ""
        return f" {text}" if piece.startswith(_WORD_START) and not text.startswith(" ") else text


@cache
def token_texts(model: str, revision: str | None) -> TokenTexts:
    """Read once for each model."""
    return TokenTexts(model, revision)
