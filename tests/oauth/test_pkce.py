"""PKCE: S256, and a server that does not check it is refused."""

from __future__ import annotations

import re

import pytest

from identity.errors import ProtocolError
from identity.oauth.pkce import Pkce, require_s256
from identity.secret import Secret
from tests.oauth.parts import server


def test_the_challenge_is_that_of_rfc_7636_appendix_b() -> None:
    kept = Pkce.restore(Secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"))
    assert kept.challenge == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_each_verifier_is_new_and_one_that_rfc_7636_allows() -> None:
    verifiers = {Pkce.new().verifier.reveal() for _ in range(100)}
    assert len(verifiers) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", verifier) for verifier in verifiers)


def test_its_repr_shows_no_verifier() -> None:
    made = Pkce.new()
    assert made.verifier.reveal() not in repr(made)


@pytest.mark.case("A3")
@pytest.mark.parametrize("methods", [(), ("plain",), ("s256",), ("S256 ",), ("plain", "S512")])
def test_a_server_without_s256_is_refused(methods: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError, match="does not support PKCE with S256"):
        require_s256(server(code_challenge_methods_supported=methods))


def test_a_server_may_support_plain_as_well() -> None:
    require_s256(server(code_challenge_methods_supported=("plain", "S256")))
