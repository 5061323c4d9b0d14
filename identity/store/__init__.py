"""The local database: SQLite, one file, numbered migrations."""

from .database import Database

__all__ = ["Database"]
