"""Private files: a secret on disk is readable by its owner alone, and is never overwritten by accident."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import SettingsError

__all__ = ["create_private", "private_folder", "read_private"]

_LIMIT = 1 << 20


def private_folder(folder: Path) -> Path:
    """``folder``, made with mode 0700 if it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"The folder {folder} cannot be used ({error.strerror})", "Choose another one") from None
    return folder


def create_private(path: Path, text: str) -> None:
    """Write a new file of mode 0600, durably. An existing file is left as it is and is an error."""
    private_folder(path.parent)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SettingsError(
            f"{path} exists already and is not overwritten", "Move it away first, if you are sure"
        ) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror})", "Choose another place") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()  # half of it would be in the way of the next attempt, which overwrites nothing
        raise SettingsError(f"{path} cannot be written ({error.strerror})", "Choose another place") from None
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # the new name is on the disk too, not its content alone
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_private(path: Path, what: str, way_out: str) -> str:
    """The text of a secret file, if nobody but its owner can read it.

    Args:
        what: what the file is, for the error: "The key ring".
        way_out: what to do when it is missing.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise SettingsError(f"{what} {path} is not a file", way_out)
        if mode & 0o077:
            raise SettingsError(f"{what} {path} can be read by others", f"Run: chmod 600 {path}")
        with path.open(encoding="utf-8") as file:
            return file.read(_LIMIT)
    except FileNotFoundError:
        raise SettingsError(f"{what} {path} is missing", way_out) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{what} {path} cannot be read ({type(error).__name__})", "Check its owner and mode"
        ) from None
