"""``deputize init``: the files that a project needs. What is there already is never touched."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import click

from ..errors import SettingsError, UsageError
from .output import json_option, tell

__all__ = ["FILES", "Written", "init", "write"]

FILES = {
    "graphs/assistant.py": "assistant.py.txt",  # the very file of this project's own graphs/, a test says so
    "app.py": "app.py.txt",
    "langgraph.json": "langgraph.json",
    ".env.example": "env.example",
}
"""What is written, and from which template."""

_IGNORED = "gitignore"


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a project's files: new ones, ones that were left as they are, and lines added to ``.gitignore``."""

    new: tuple[str, ...]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@json_option
def init(folder: Path, as_json: bool) -> None:
    """Begin a project, or add to one.

    Writes a graph, an app, langgraph.json and example settings into FOLDER, or here. An existing file is never
    overwritten.
    """
    written = write(folder)
    steps = _next(folder, written)
    facts = {
        "folder": str(folder),
        "written": list(written.new),
        "kept": list(written.kept),
        "ignored": list(written.ignored),
        "next": steps,
    }
    lines = [f"wrote  {folder / name}" for name in written.new]
    lines += [f"added  {', '.join(written.ignored)} to {folder / '.gitignore'}"] if written.ignored else []
    lines += [f"left   {folder / name} as it is" for name in written.kept]
    tell(as_json, facts, [*lines, "", "Next:", *(f"  {n}. {step}" for n, step in enumerate(steps, 1))])


def write(folder: Path) -> Written:
    """Write what is missing.

    Raises:
        SettingsError: the folder cannot be written to. What was written before stays.
    """
    new, kept = [], []
    try:
        for name, template in FILES.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with target.open("x", encoding="utf-8") as file:
                    file.write(_template(template))
                new.append(name)
            except FileExistsError:
                kept.append(name)
        return Written(tuple(new), tuple(kept), _ignore(folder / ".gitignore"))
    except UnicodeDecodeError:
        raise UsageError(f"{folder / '.gitignore'} is not a text file", "Correct it, then run this again") from None
    except OSError as error:
        raise SettingsError(
            f"{error.filename or folder} cannot be written ({error.strerror})", "Choose another folder"
        ) from None


def _ignore(path: Path) -> tuple[str, ...]:
    """Add the lines that ``.gitignore`` lacks: keys and settings do not belong into a repository."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    present = {line.strip().strip("/") for line in before.splitlines()}
    missing = tuple(line for line in _template(_IGNORED).split() if line.strip("/") not in present)
    if missing:
        with path.open("a", encoding="utf-8") as file:
            file.write(("" if not before or before.endswith("\n") else "\n") + "".join(f"{line}\n" for line in missing))
    return missing


def _template(name: str) -> str:
    return (files("identity.cli") / "templates" / name).read_text(encoding="utf-8")


_ADD = {
    "app.py": (
        "server_auth",
        "In app.py, add: auth = server_auth(identity) and app = server_app(identity), from identity.server",
    ),
    "langgraph.json": (
        '"auth"',
        'In langgraph.json, add: "auth": {"path": "app:auth", "disable_studio_auth": true} and'
        ' "http": {"app": "app:app", "disable_mcp": true, "disable_a2a": true, "disable_store": true,'
        ' "disable_webhooks": true, "disable_ui": true}',
    ),
}
"""What a file that was left as it is needs, if it lacks a word."""


def _next(folder: Path, written: Written) -> list[str]:
    kept = [_ADD[name] for name in written.kept if name in _ADD and _ADD[name][0] not in _text(folder / name)]
    return [
        *([] if folder == Path() else [f"cd {folder}"]),
        'Install what it needs: pip install "langgraph-cli[inmem]" langchain-openai',
        *(line for _, line in kept),
        "Copy .env.example to .env, and fill it in",
        "Make the keys: deputize --env-file .env keys new; deputize --env-file .env keys client",
        "Register the public key that this prints, with your client id, at your issuer",
        "See whether everything works: deputize --env-file .env doctor",
        "Serve it: langgraph dev --no-browser",
    ]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
