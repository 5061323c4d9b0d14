"""The demo's model: OpenAI's, or any that speaks its protocol, by ``OPENAI_API_KEY``; else the offline one."""

from __future__ import annotations

import os

from langchain_core.language_models import BaseChatModel

from identity import SettingsError

from .offline import OfflineModel

__all__ = ["chat_model"]

_DEFAULT = "gpt-5-mini"


def chat_model() -> BaseChatModel:
    """``ChatOpenAI`` by ``OPENAI_API_KEY``, ``OPENAI_BASE_URL`` and ``OPENAI_MODEL``; without a key :class:`OfflineModel`.

    Raises:
        SettingsError: a base URL or a model is set and a key is not. A local server wants some key too: any text will do.
    """
    key = os.environ.get("OPENAI_API_KEY", "")
    others = [name for name in ("OPENAI_BASE_URL", "OPENAI_MODEL") if os.environ.get(name)]
    if not key:
        if others:
            raise SettingsError(
                f"{others[0]} is set and OPENAI_API_KEY is not",
                "Set OPENAI_API_KEY too (any text for a local server), or unset both for the offline model",
            )
        return OfflineModel()
    from langchain_openai import ChatOpenAI  # takes a second to import

    return ChatOpenAI(model=os.environ.get("OPENAI_MODEL") or _DEFAULT, temperature=0, max_retries=2, timeout=60)
