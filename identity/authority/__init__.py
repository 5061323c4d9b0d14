"""The approval authority: where people decide what an agent may do for them.

It holds what was asked (CIBA Core), shows it on pages of its own, and lets the person who was asked, and nobody else,
approve or deny. An authorization server calls it; it knows no grant, no token and no agent framework.
"""

from .pages import authority_routes
from .service import Approval, Authority, CibaError, approvals_table
from .web import Inbound, SignedIn, endpoint, strict_json, templates

__all__ = [
    "Approval",
    "Authority",
    "CibaError",
    "Inbound",
    "SignedIn",
    "approvals_table",
    "authority_routes",
    "endpoint",
    "strict_json",
    "templates",
]
