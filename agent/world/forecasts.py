"""What the world's analysts expect. Some of it is for traders only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORECASTS", "Forecast"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """One analyst's forecast for one stock.

    Args:
        restricted: whether it is for traders only.
    """

    id: str
    symbol: str
    analyst: str
    text: str
    restricted: bool


FORECASTS = (
    Forecast("acme-ng", "ACME", "R. Ng", "steady, 101 USD in a year", restricted=False),
    Forecast("acme-okoye", "ACME", "D. Okoye", "a takeover is being prepared, 120 USD", restricted=True),
    Forecast("nova-ng", "NOVA", "R. Ng", "growing with its market, 45 USD in a year", restricted=False),
    Forecast("nova-okoye", "NOVA", "D. Okoye", "its largest customer is leaving, 30 USD", restricted=True),
    Forecast("orbt-silva", "ORBT", "P. Silva", "no dividend this year, 12 USD", restricted=True),
    Forecast("halo-silva", "HALO", "P. Silva", "full order books, 260 USD in a year", restricted=False),
)
