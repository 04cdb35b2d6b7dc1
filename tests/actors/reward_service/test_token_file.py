"""The token's file: made once, for its owner alone, and refused if others may read it."""

import stat
from pathlib import Path

import pytest

from actors.reward_service.token_file import read_or_create_token
from core.errors import UserError


def test_a_token_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    token = read_or_create_token(file)
    assert len(token) >= 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_or_create_token(file) == token
    assert read_or_create_token(tmp_path / "other") != token


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_may_read_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    read_or_create_token(file)
    file.chmod(mode)
    with pytest.raises(UserError, match="others may read this token; run `chmod 600 "):
        read_or_create_token(file)


@pytest.mark.parametrize("content", [b"", b"short", b"two words of sixteen", b"\xff" * 40, "é".encode() * 40])
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UserError, match="token"):
        read_or_create_token(file)


def test_a_folder_is_no_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as a token"):
        read_or_create_token(tmp_path)
