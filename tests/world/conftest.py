"""A driver of the embedded world for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support import Inside
from tests.world.driver import Driver


@pytest_asyncio.fixture
async def driver(world: Inside) -> AsyncIterator[Driver]:
    made = Driver(world)
    yield made
    await made.close()
