"""Conversations as documents: all their messages, and the text among them, which is what the assistant says.

The text is all of the assistant's turns, joined; a message that calls tools is none, whatever it says besides. So the
text, and with it every byte that is compared, learned or paid for, is the same for all models, whatever their chat
templates put around it (`tasks.engines.encoding`).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.corpora.documents import Document, text_id

Message = Mapping[str, Any]  # Any: what templates read differs: content, tool calls and their arguments


def read_conversation(messages: list[Any], domain: str) -> Document:
    """The document that a list of messages is; its id is a digest of all of them, fields that are null left out.

    Raises `ValueError` unless each message has a role and, as its content, text or nothing.
    """
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"expected messages with a role each, found message {number} without; mend or remove the row"
            )
        if not isinstance(message.get("content"), str | None):
            raise ValueError(
                f"expected text as the content of message {number}, found {type(message['content']).__name__}; remove "
                "rows with anything but text"
            )
    kept = json.dumps(_without_nulls(messages), ensure_ascii=False, sort_keys=True)
    text = "".join(messages[number]["content"] for number in find_turns(messages))
    return Document(text_id(kept), text, domain, messages=kept)


def find_turns(messages: list[Message]) -> list[int]:
    """Which of the messages are text: the assistant's that say something and call no tools."""
    return [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("content") and not message.get("tool_calls")
    ]


def all_words(document: Document) -> str:
    """What everybody in a document says, a line per role, content, name or argument; a plain document's text."""
    return "\n".join(_leaves(json.loads(document.messages))) if document.messages else document.text


def _without_nulls(value: Any) -> Any:
    """The same without fields that are null: a column of Parquet has every field in every row."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield str(value)
