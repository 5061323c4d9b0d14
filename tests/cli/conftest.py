from __future__ import annotations

import pytest

from tests.cli.desk import Desk
from tests.support import Inside


@pytest.fixture
def desk(world: Inside) -> Desk:
    """A terminal of the embedded world."""
    return Desk(world)
