"""A secret on disk: private, durable, never overwritten, and refused when others can read it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from identity import SettingsError
from identity.files import create_private, private_folder, read_private


def read(path: Path) -> str:
    return read_private(path, "The file", "Make it anew")


def test_a_private_file_is_its_owners_alone_whatever_the_umask_and_so_is_its_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "secret"
    before = os.umask(0)
    try:
        create_private(path, "s3cret ✓")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read(path) == "s3cret ✓"


def test_a_file_that_exists_is_not_overwritten_not_even_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("theirs")
    link = tmp_path / "secret"
    link.symlink_to(target)
    for path in (target, link):
        with pytest.raises(SettingsError, match="exists already and is not overwritten"):
            create_private(path, "ours")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(SettingsError):
        create_private(dangling, "ours")
    assert target.read_text() == "theirs"
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_leaves_no_half_file_that_would_be_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(SettingsError, match="No space left"):
            create_private(path, "first")
    create_private(path, "second")
    assert read(path) == "second"


def _nothing(path: Path) -> None:
    pass


def _folder(path: Path) -> None:
    path.mkdir()


def _readable(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_text("secret")
        path.chmod(mode)

    return make


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    path.chmod(0o600)


def _below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")


@pytest.mark.parametrize(
    ("make", "told", "way_out"),
    [
        (_nothing, "The file .* is missing", "Make it anew"),
        (_folder, "is not a file", "Make it anew"),
        (_readable(0o640), "can be read by others", "chmod 600"),
        (_readable(0o604), "can be read by others", "chmod 600"),
        (_readable(0o620), "can be read by others", "chmod 600"),
        (_binary, "cannot be read", "owner and mode"),
        (_below_a_file, "cannot be read", "owner and mode"),
    ],
)
def test_a_secret_that_cannot_be_trusted_or_read_says_what_to_do(
    tmp_path: Path, make: Callable[[Path], None], told: str, way_out: str
) -> None:
    path = tmp_path / "keys" / "secret"
    path.parent.mkdir()
    make(path)
    with pytest.raises(SettingsError, match=told) as refused:
        read(path)
    assert way_out in refused.value.hint
    assert "\n" not in str(refused.value)


def test_a_file_of_somebody_else_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    create_private(path, "theirs")

    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(SettingsError, match="cannot be read"):
        read(path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingsError, match="cannot be used"):
            private_folder(folder)
