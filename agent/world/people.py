"""The people of the world, and the browsers that they sign in with."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

from identity.authority import SignedIn, strict_json

from .installation import Installation, PersonRecord
from .storage import fingerprint

__all__ = ["People"]

_SESSION_LIFETIME = 8 * 3600
_GUESSES = 5
_LOCKED = 60.0


class People:
    """Passwords, browser sessions, and what stops guessing."""

    def __init__(self, world: Installation, clock: Callable[[], float]) -> None:
        self._world = world
        self._db = world.database
        self._clock = clock

    def hinted(self, hint: str, issuer: str) -> PersonRecord | None:
        """The person whom a CIBA ``login_hint`` names: ``iss_sub`` JSON (RFC 9493) or a user name, compared as a whole.

        Nothing in a hint is merged or evaluated: one with other members, or with a member twice, means nobody. A quote in
        a user id that somebody pasted into a hint would else name another person (casebook B5).
        """
        if hint.startswith("{"):
            try:
                found = strict_json(hint)
            except ValueError:
                return None
            if set(found) != {"format", "iss", "sub"} or (found["format"], found["iss"]) != ("iss_sub", issuer):
                return None
            return next((p for p in self._world.people.values() if p.subject == found["sub"]), None)
        return self._world.people.get(hint)

    def check(self, username: str, password: str) -> tuple[PersonRecord | None, bool]:
        """The person of a name and password; else ``None``, and whether there were too many attempts."""
        key = f"login {username[:64]}"
        if self.locked(key):
            return None, True
        person = self._world.people.get(username)
        expected = person.password if person else secrets.token_urlsafe(9)  # the same work for a name that nobody has
        if not hmac.compare_digest(password.encode(), expected.encode()) or person is None:
            self.guess(key)
            return None, False
        return person, False

    def locked(self, key: str) -> bool:
        """Whether there were five wrong guesses within the last minute (RFC 8628 §5.1; casebook B14)."""
        rows = self._db.read("SELECT count, until FROM guesses WHERE id = ?", (key,))
        return bool(rows) and rows[0][0] >= _GUESSES and self._clock() < rows[0][1]

    def guess(self, key: str) -> None:
        """Count a wrong guess."""
        now = self._clock()
        with self._db.write(durable=False) as db:
            db.execute("DELETE FROM guesses WHERE until < ?", (now,))
            db.execute(
                "INSERT INTO guesses (id, count, until) VALUES (?, 1, ?)"
                " ON CONFLICT (id) DO UPDATE SET count = count + 1, until = excluded.until",
                (key, now + _LOCKED),
            )

    def remember(self, subject: str) -> str:
        """A new browser session; an empty ``subject`` before somebody signs in. Returns the cookie's value."""
        value, now = secrets.token_urlsafe(32), self._clock()
        with self._db.write(durable=False) as db:
            db.execute("DELETE FROM browsers WHERE expires_at < ?", (now,))
            db.execute(
                "INSERT INTO browsers (id, subject, csrf, auth_time, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
                (fingerprint(value), subject, secrets.token_urlsafe(24), now, now, now + _SESSION_LIFETIME),
            )
        return value

    def browser(self, cookie: str) -> SignedIn | None:
        """The session of a cookie; its ``subject`` is empty before somebody has signed in."""
        rows = self._db.read(
            "SELECT subject, csrf, auth_time FROM browsers WHERE id = ? AND expires_at > ?",
            (fingerprint(cookie), self._clock()),
        )
        if not rows:
            return None
        subject, csrf, auth_time = rows[0]
        name = next((p.name for p in self._world.people.values() if p.subject == subject), "")
        return SignedIn(subject, name, csrf, auth_time)

    def forget(self, cookie: str) -> None:
        """End a browser session."""
        with self._db.write(durable=False) as db:
            db.execute("DELETE FROM browsers WHERE id = ?", (fingerprint(cookie),))
