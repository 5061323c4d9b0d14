"""What a person's message may hold."""

from __future__ import annotations

__all__ = ["odd_blocks"]

_BLOCKS = frozenset(
    {"text", "text-plain", "image", "image_url", "input_image", "file", "input_file", "audio", "input_audio", "video"}
)


def odd_blocks(content: object) -> list[str]:
    """The kinds of content blocks that are no person's words.

    Attack: a block that some providers take for a tool's result, or for the model's own call, in a person's message (E21).
    """
    blocks = content if isinstance(content, list) else []
    kinds = [block.get("type") if isinstance(block, dict) else "text" for block in blocks]
    return [str(kind)[:60] for kind in kinds if kind not in _BLOCKS]
