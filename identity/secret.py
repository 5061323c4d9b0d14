"""``Secret``: a string that does not print, format, pickle, serialize or copy itself into anything.

``.reveal()`` is the only way to the value, so ``grep -n 'reveal()'`` lists every place where a secret is in the open.
"""

from __future__ import annotations

import hmac
from typing import NoReturn

from .errors import GateError

__all__ = ["Secret"]


class Secret:
    """A secret string with a redacted ``repr``.

    ``str()``, ``format()``, iteration, pickling, deep copying and JSON all refuse: each is a way by which tokens get
    into logs, checkpoints and messages. Comparison is constant-time, and with another ``Secret`` only.
    """

    __slots__ = ("__value",)
    __hash__ = None  # type: ignore[assignment]  # a dict key or set member is a copy that nobody looks for

    def __init__(self, value: str) -> None:
        if not isinstance(value, str) or not value:
            raise GateError("A secret must be a string that is not empty", code="secret")
        self.__value = value

    def reveal(self) -> str:
        """The value itself. Call it where the value is sent, sealed or compared, and nowhere else."""
        return self.__value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        # surrogatepass: comparing with what somebody sent must not raise, whatever that was
        mine, theirs = (value.encode("utf-8", "surrogatepass") for value in (self.__value, other.__value))
        return hmac.compare_digest(mine, theirs)

    def __str__(self) -> str:
        self.__refuse("turned into text")

    def __format__(self, format_spec: str) -> str:
        self.__refuse("formatted")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__refuse("pickled or copied")

    def __copy__(self) -> NoReturn:
        self.__refuse("copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__refuse("copied")

    @staticmethod
    def __refuse(how: str) -> NoReturn:
        raise GateError(
            f"A secret cannot be {how}", "Use .reveal() at the one place that sends or seals it", code="secret"
        )
