"""Each test of this folder runs with each placement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.placements.placing import PLACEMENTS, Placement, Waiting
from tests.support import Inside, as_caller


@pytest.fixture(params=PLACEMENTS, ids=lambda placement: placement.name)
def placement(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest_asyncio.fixture
async def waiting(world: Inside, placement: Placement) -> AsyncIterator[Waiting]:
    """A thread of alice that waits for the approval of a large order; the rest of the test runs for her."""
    made = Waiting(world, placement)
    await made.begin()
    with as_caller(world, "alice"):
        yield made
