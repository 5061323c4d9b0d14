"""What the commands take from the machine that they run on. Tests put something else in its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from ..identity import Identity
    from ..settings import Settings

__all__ = ["Surroundings"]


def _user() -> str:
    """The operating system's name for who runs this: by user id, since names in the environment are anybody's to set."""
    import os

    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except ImportError:  # Windows
        import getpass

        return getpass.getuser()
    except KeyError:  # a container's user without a name
        return f"uid-{os.getuid()}"


def _browse(url: str) -> bool:
    import webbrowser

    return webbrowser.open(url)


@dataclass
class Surroundings:
    """
    Args:
        env_file: a file of settings beside the environment.
        folder: where the command runs.
        clock: unix seconds.
        user: who runs it, for the operating system.
        browse: opens a page in the person's browser; whether it could.
        pause: waits between polls.
        mount: replaces the network.
        given: settings that come before the environment.
    """

    env_file: Path | None = None
    folder: Path = field(default_factory=Path)
    clock: Callable[[], float] = time.time
    user: Callable[[], str] = _user
    browse: Callable[[str], bool] = _browse
    pause: Callable[[float], Any] = asyncio.sleep
    mount: httpx.AsyncBaseTransport | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def settings(self, **more: Any) -> Settings:
        """The settings.

        Raises:
            SettingsError: they are missing or contradict each other.
        """
        from ..settings import load_settings

        return load_settings(self.env_file, **{**self.given, **more})

    def identity(self, **more: Any) -> Identity:
        """The identity layer of these settings; whoever asks for it closes it."""
        from ..identity import Identity

        return Identity(self.settings(**more), clock=self.clock, mount=self.mount, pause=self.pause)
