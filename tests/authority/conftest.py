"""The authority is tried in the embedded world, where it is mounted."""

from tests.world.conftest import driver

__all__ = ["driver"]
