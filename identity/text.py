"""Text from elsewhere, made safe to show.

Terminals obey escape sequences, logs are split by line breaks, and people are misled by characters that reorder or
hide others. What others wrote is shown with all of these spelled out (casebook B10, G5).
"""

from __future__ import annotations

import unicodedata

__all__ = ["SHOWN_LIMIT", "printable"]

SHOWN_LIMIT = 2_000
"""Characters of one value that an approval page shows. What is longer is not asked about."""

# Categories that change what surrounds them: control, format (bidirectional, zero-width), surrogate, private use,
# unassigned, and the line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

# Letters and marks that take no room all the same (Unicode's Default_Ignorable_Code_Point): the grapheme joiner, the
# Hangul and Khmer fillers, the Mongolian and the supplementary variation selectors.
_INVISIBLE = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0))
) | frozenset(map(chr, range(0xE0100, 0xE01F0)))


def printable(text: str, *, limit: int = 200) -> str:
    """``text`` on one line, with control, bidirectional and zero-width characters escaped, cut at ``limit`` characters.

    Printable characters of any script stay as they are. The result is safe in a terminal, a log line and, after the
    usual HTML escaping, a page.
    """
    if text.isascii() and text.isprintable() and len(text) <= limit:  # nearly always: skip the walk
        return text
    shown: list[str] = []
    length = 0
    for character in text:
        hidden = unicodedata.category(character) in _HIDDEN or character in _INVISIBLE
        piece = character.encode("unicode_escape").decode("ascii") if hidden else character
        length += len(piece)
        if length > limit:
            shown.append("…")
            break
        shown.append(piece)
    return "".join(shown)
