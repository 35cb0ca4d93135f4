"""What a model's chat template puts around the turns of a conversation."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from pydantic import AfterValidator, Field

from fusion_core.spec import LATER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class _Generation(Extension):  # type: ignore[misc]  # jinja2 is untyped here
    """transformers' own tag, around what the model is to say."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


_SYNTAX = Environment(extensions=["jinja2.ext.loopcontrols", _Generation])


def _check_syntax(template: str | None) -> str | None:
    """The template; None for an empty one. Nothing of it runs. Raises `ValueError` for what isn't Jinja."""
    try:
        _SYNTAX.parse(template or "")
    except TemplateSyntaxError as error:
        raise ValueError(f"expected a chat template in Jinja, found in line {error.lineno}: {error.message}") from error
    return template or None


ChatTemplate = Annotated[
    str | None,
    AfterValidator(_check_syntax),
    LATER,
    Field(
        title="Chat template",
        description="In Jinja, in the place of the model's own: how it reads conversations. Empty: its own.",
    ),
]
_FILE = "chat_template.jinja"
_MOST, _PREAMBLE = 64, 1024
_MARK = "\ue000{}\ue001"  # of private characters, which no template changes and hardly a text has
_MARKED = re.compile("(\ue000[0-9]+\ue001)")
_SAME_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"  # a conversation must read tomorrow as today


def write_template(folder: Path, template: str | None) -> None:
    """Gives a model's folder this template, unless it is None, in the place of its own."""
    if template is not None:
        (folder / _FILE).write_text(template, encoding="utf-8")


def render_around(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Mapping[str, Any]],  # Any: what templates read differs
    turns: Sequence[int],
    words: Sequence[int] = (),
    tools: Sequence[Mapping[str, Any]] = (),
    special: Sequence[str] = (),
) -> list[list[str]]:
    """What is before each of the turns, named by the number of their message, and what follows the last.

    Each is the template's own text and, at odd places, what the messages `words` say, or what of `special` stands in
    the definitions of tools.

    The template sees a mark in the place of all of these and of turns. So they stay as they are, whatever a template
    does to some (it may trim them, or take the reasoning out of all but the last). Templates that tell the date tell a
    fixed one.

    Raises:
        ValueError: the template refuses the messages, makes far too much of them, or doesn't show each turn once and
            in order.
    """
    marks = {_MARK.format(number): number for number in (*turns, *words)}
    shown = [dict(message) for message in messages]
    for mark, number in marks.items():
        shown[number]["content"] = mark
    texts = {_MARK.format(number): messages[number]["content"] for number in words}
    offered = None
    if tools:
        hidden = {text: _MARK.format(number) for number, text in enumerate(special, len(messages))}
        texts |= {mark: text for text, mark in hidden.items()}
        offered = _hide(tools, hidden)
    rendered = _render(tokenizer, shown, offered)
    said = len(json.dumps(messages)) + (len(json.dumps(tools)) if tools else 0)
    if len(rendered) > _MOST * (said + _PREAMBLE):
        raise ValueError(
            f"expected the chat template to make at most {_MOST} times as much of {said:,} characters of messages and "
            f"{_PREAMBLE:,} of its own, found {len(rendered):,}"
        )
    around, found = [[""]], []
    for piece in _MARKED.split(rendered):
        number = marks.get(piece, -1)
        if number in turns:
            found.append(number)
            around.append([""])
        elif piece in texts:
            around[-1] += [texts[piece], ""]
        else:
            around[-1][-1] += piece
    if found != list(turns):
        raise ValueError(
            f"expected the chat template to show the assistant's turns, messages {list(turns)}, once and in order, "
            f"found {found}"
        )
    return around


def _render(tokenizer: "PreTrainedTokenizerFast", messages: list[Any], tools: list[Any] | None) -> str:  # Any: as above
    try:
        template = _SAME_DAY + tokenizer.get_chat_template(tools=tools)
        return str(tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False))
    except MemoryError:
        raise
    except Exception as error:  # a template raises what its author chose
        raise ValueError(f"the chat template refuses the conversation: {error}") from error


def _hide(value: Any, marks: Mapping[str, str]) -> Any:  # Any: plain JSON
    """The same, with marks in the place of the texts that they stand for; of two that begin at a place the longer."""
    looks = re.compile("|".join(re.escape(text) for text in sorted(marks, key=len, reverse=True)) or "(?!)")

    def hide(part: Any) -> Any:  # Any: as above
        if isinstance(part, str):
            return looks.sub(lambda found: marks[found[0]], part)
        if isinstance(part, list):
            return [hide(item) for item in part]
        return {hide(name): hide(item) for name, item in part.items()} if isinstance(part, dict) else part

    return hide(value)
