"""The local database: SQLite, one file, numbered migrations."""

from .database import Database, marker_of

__all__ = ["Database", "marker_of"]
