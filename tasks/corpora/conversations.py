"""Conversations as documents: all that models read of them, and their text, which is what the assistant says.

The text is all of the assistant's turns, joined; a message that calls tools is none, whatever it says besides. So the
text, and with it every byte that is compared, learned or paid for, is the same for all models, whatever their chat
templates put around it (`tasks.engines.encoding`). The tools that a conversation offers are around it too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.corpora.documents import Document, text_id

Message = Mapping[str, Any]  # Any: what templates read differs: content, tool calls and their arguments
Tool = Mapping[str, Any]  # Any: a JSON schema

_READ_BY_TEMPLATES = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_MAX_DEPTH = 32


def read_conversation(
    messages: list[Any], domain: str, tools: Sequence[Tool] = (), *, padded: bool = False
) -> Document:
    """The document that a list of messages is; its id is a digest of all that templates read of them and of the tools.

    Other fields are left out, and those that are null; the older `function_call` becomes one of `tool_calls`.

    tools: that the assistant may call, as `read_tools` gives them.
    padded: the messages come from a table, where every field is in every row: what is null within a field was never
        there. Elsewhere it is what somebody wrote, such as an argument of a tool.

    Raises `ValueError` unless each message has a role and, as its content, text or nothing, and is what JSON can say.
    """
    read = [_read_message(message, number, padded) for number, message in enumerate(messages)]
    kept = json.dumps(read, ensure_ascii=False, sort_keys=True)
    if tools:  # not sorted: models have learned to read the name first
        kept = f'{{"messages": {kept}, "tools": {json.dumps(tools, ensure_ascii=False)}}}'
    text = "".join(read[number]["content"] for number in find_turns(read))
    return Document(text_id(kept), text, domain, messages=kept)


def read_tools(value: object, *, padded: bool = False) -> list[Tool]:
    """The definitions of tools in a row's column: a list, or one written as JSON; none for null and empty text.

    A function without an envelope, its `type` beside its name or none, becomes the `function` of a tool, as most models
    have learned to read them.

    padded: as for `read_conversation`; what is written as JSON never is.

    Raises `ValueError` for anything else, for definitions that aren't objects, and for what JSON or UTF-8 can't say.
    """
    if isinstance(value, str):
        value, padded = _parse(value), False
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(
            f"expected a list of tools, found {type(value).__name__}; set tools_field, or mend or remove the row"
        )
    if odd := [number for number, tool in enumerate(value) if not isinstance(tool, dict)]:
        raise ValueError(
            f"expected objects as the tools, found {type(value[odd[0]]).__name__} as tool {odd[0]}; mend or remove "
            "the row"
        )
    tools = [_copy(tool, f"definition of tool {number}", padded) for number, tool in enumerate(value)]
    json.dumps(tools, ensure_ascii=False).encode()  # raises here, where the column is known
    return [_wrap(tool) for tool in tools]


def messages_and_tools(document: Document) -> tuple[list[Message], list[Tool]]:
    """All messages of a conversation, and the tools that it offers."""
    read = json.loads(document.messages)
    return (read["messages"], read["tools"]) if isinstance(read, dict) else (read, [])


def find_turns(messages: Sequence[Message]) -> list[int]:
    """Which of the messages are text: the assistant's that say something and call no tools."""
    return [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("content") and not message.get("tool_calls")
    ]


def exchange(document: Document) -> str:
    """What user and assistant say in a conversation, without what many share: the system's message, and the tools.

    Of a plain document its text.
    """
    if not document.messages:
        return document.text
    messages, _ = messages_and_tools(document)
    return "\n".join(m["content"] for m in messages if m["role"] in ("user", "assistant") and m.get("content"))


def all_words(document: Document) -> str:
    """What everybody in a document says and its tools' definitions do, for a model reads them all; a plain one's text.

    A line per content, name, argument or description.
    """
    if not document.messages:
        return document.text
    messages, tools = messages_and_tools(document)
    return "\n".join(_leaves([{**message, "role": None} for message in messages] + [*tools]))


def _wrap(tool: Tool) -> Tool:
    if "function" in tool or "name" not in tool:  # wrapped already, or of a kind that isn't known here
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _parse(tools: str) -> object:
    try:
        return json.loads(tools.strip() or "null")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"expected a list of tools, or one as JSON, found text that isn't JSON ({error}); set tools_field, or mend "
            "or remove the row"
        ) from error


def _read_message(message: Any, number: int, padded: bool) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"expected messages with a role each, found message {number} without; mend or remove the row")
    if not isinstance(message.get("content"), str | None):
        raise ValueError(
            f"expected text as the content of message {number}, found {type(message['content']).__name__}; remove "
            "rows with anything but text"
        )
    read = {
        name: _copy(message[name], f"{name} of message {number}", padded)
        for name in (*_READ_BY_TEMPLATES, "function_call")
        if message.get(name) is not None
    }
    call = read.pop("function_call", None)
    if call and not read.get("tool_calls"):
        read["tool_calls"] = [{"type": "function", "function": call}]
    return read


def _copy(value: Any, where: str, padded: bool, depth: int = 0) -> Any:
    """The same, where JSON can say it, without fields that are null if they may be padding."""
    if not isinstance(value, dict | list | str | int | float | None):
        raise ValueError(
            f"expected text, numbers, lists and objects as the {where}, found {type(value).__name__}; mend or remove "
            "the row"
        )
    if depth > _MAX_DEPTH:
        raise ValueError(f"expected at most {_MAX_DEPTH} levels in the {where}, found more; mend or remove the row")
    if isinstance(value, list):
        return [_copy(item, where, padded, depth + 1) for item in value]
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if not padded or item is not None}
        return {name: _copy(item, where, padded, depth + 1) for name, item in kept.items()}
    return value


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif value is not None:
        yield str(value)
