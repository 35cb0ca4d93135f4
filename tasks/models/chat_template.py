"""What a model's chat template puts around the turns of a conversation."""

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
_MARK = "\ue000{}\ue001"  # of private characters, which no template changes and hardly a text has
_SAME_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"  # a conversation must read tomorrow as today


def write_template(folder: Path, template: str | None) -> None:
    """Gives a model's folder this template, unless it is None, in the place of its own."""
    if template is not None:
        (folder / _FILE).write_text(template, encoding="utf-8")


def render_around(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Mapping[str, Any]],  # Any: what templates read differs
    turns: Sequence[int],
) -> list[str]:
    """The text before each of the turns, named by the number of their message, and what follows the last.

    The template sees a mark in the place of what a turn says. So a turn stays as it is, whatever a template does to
    some (it may trim them, or take the reasoning out of all but the last). Templates that tell the date tell a
    fixed one.

    Raises:
        ValueError: the template refuses the messages, or doesn't show each turn once and in order.
    """
    marks = {message: _MARK.format(message) for message in turns}
    shown = [dict(m) | ({"content": marks[n]} if n in marks else {}) for n, m in enumerate(messages)]
    try:
        template = _SAME_DAY + tokenizer.get_chat_template()
        rest = str(tokenizer.apply_chat_template(shown, chat_template=template, tokenize=False))
    except Exception as error:  # a template raises what its author chose
        raise ValueError(f"the chat template refuses the conversation: {error}") from error
    around = []
    for message, mark in marks.items():
        before, found, after = rest.partition(mark)
        if not found or mark in after:
            raise ValueError(
                f"expected the chat template to show every turn of the assistant once and in order, found message "
                f"{message} {rest.count(mark)} times"
            )
        around.append(before)
        rest = after
    return [*around, rest]
