"""A server's token on disk: made if there is none, and readable by its owner alone."""

import os
import secrets
import stat
from pathlib import Path

from core.errors import UserError


def read_or_create_token(file: Path) -> str:
    """The token. Raises `UserError` if others may read the file, or if it is empty."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return _read(file)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); choose another --token-file"
        ) from error
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(token + "\n")
    return token


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as stream:
            if os.fstat(stream.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UserError(f"{file}: others may read this token; run `chmod 600 {file}`")
            token = stream.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as a token ({error}); choose another --token-file"
        ) from error
    if not token.isascii() or len(token) < 16 or any(char.isspace() for char in token):
        raise UserError(f"{file}: holds no token of 16 characters or more; remove it, and a new one is made")
    return token
