"""``python -m agent demo`` plays the story; ``python -m agent chat`` talks in the terminal."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from identity.errors import DeputizeError


def main() -> int:
    """Run a command; returns the exit code: 0, 1 (failed), 2 (used wrongly)."""
    parser = argparse.ArgumentParser(prog="python -m agent", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="play the whole story on the embedded world, and verify each step")
    demo.add_argument("--json", action="store_true", help="print the result as JSON")
    chat = commands.add_parser("chat", help="talk to the assistant in the terminal")
    chat.add_argument("--port", type=int, default=2024, help="where the embedded world is served (default: 2024)")
    chat.add_argument("--home", type=Path, default=Path(".deputize/chat"), help="where it keeps its things")
    chat.add_argument("--no-browser", action="store_true", help="show links and do not open them")
    part = commands.add_parser("demo-part")  # the process that the demo kills
    part.add_argument("--home", type=Path, required=True)
    part.add_argument("--url", required=True)
    part.add_argument("--subject", required=True)
    part.add_argument("--say", default="")
    given = parser.parse_args()
    try:
        if given.command == "chat":
            from .chat import chat as talk

            return asyncio.run(talk(given.home, given.port, open_browser=not given.no_browser))
        if given.command == "demo-part":
            from .demo import part as play_part

            return asyncio.run(play_part(given.home, given.url, given.subject, given.say))
        from .demo import demo as play

        return asyncio.run(play(as_json=given.json))
    except DeputizeError as error:
        print(f"deputize: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
