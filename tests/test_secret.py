"""``Secret``: no way out but ``reveal()``."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from identity.errors import GateError
from identity.secret import Secret

VALUE = "s3cr3t-value"


@dataclasses.dataclass
class Holder:
    secret: Secret


def test_reveal_returns_the_value() -> None:
    assert Secret(VALUE).reveal() == VALUE


def test_its_repr_is_redacted_alone_and_inside_others() -> None:
    secret = Secret(VALUE)
    for shown in (
        repr(secret),
        f"{secret!r}",
        repr([secret]),
        repr({"a": secret}),
        repr(Holder(secret)),
        f"{[secret]}",
    ):
        assert "Secret(***)" in shown
        assert VALUE not in shown


WAYS: dict[str, Callable[[Secret], object]] = {
    "str": str,
    "format": lambda s: f"{s}",
    "format with a width": lambda s: f"{s:>40}",
    "percent": lambda s: "%s" % s,  # noqa: UP031 - one more way
    "str.format": lambda s: "{}".format(s),  # noqa: UP032 - one more way
    "join": lambda s: "".join([s]),  # type: ignore[list-item]
    "concatenation": lambda s: "Bearer " + s,  # type: ignore[operator]
    "list": list,  # type: ignore[dict-item]
    "len": len,  # type: ignore[dict-item]
    "index": lambda s: s[0],  # type: ignore[index]
    "bytes": bytes,  # type: ignore[dict-item]
    "pickle": pickle.dumps,
    "pickle inside": lambda s: pickle.dumps({"a": [s]}),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy inside": lambda s: copy.deepcopy({"a": [s]}),
    "asdict": lambda s: dataclasses.asdict(Holder(s)),
    "json": json.dumps,
    "json as text": lambda s: json.dumps({"a": s}, default=str),
    "checkpoint": lambda s: JsonPlusSerializer(pickle_fallback=False).dumps_typed({"a": s}),
    "checkpoint with pickle": lambda s: JsonPlusSerializer(pickle_fallback=True).dumps_typed({"a": s}),
    "dict key": lambda s: {s: 1},
    "set member": lambda s: {s},
    "new attribute": lambda s: setattr(s, "value", 1),
    "vars": vars,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_into_a_log_a_checkpoint_or_a_message_refuses(way: str) -> None:
    with pytest.raises((GateError, TypeError, AttributeError)) as refused:
        WAYS[way](Secret(VALUE))
    assert VALUE not in str(refused.value)


def test_a_logged_secret_is_not_in_the_record() -> None:
    record = logging.LogRecord("n", logging.INFO, __file__, 1, "token %r", (Secret(VALUE),), None)
    assert record.getMessage() == "token Secret(***)"


@pytest.mark.case("C4")
@pytest.mark.parametrize("nothing", ["", None, 0, b"bytes", ["list"], Secret(VALUE)])
def test_an_empty_secret_and_one_that_is_no_text_cannot_be_made(nothing: Any) -> None:
    with pytest.raises(GateError) as refused:
        Secret(nothing)
    assert refused.value.code == "secret"


def test_a_secret_equals_another_one_of_the_same_value_and_nothing_else() -> None:
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret(VALUE + " ")
    assert Secret(VALUE) != VALUE
    assert Secret("é") == Secret("é")
    assert Secret("\ud800") != Secret(VALUE)  # what somebody sent may be compared, whatever it is
