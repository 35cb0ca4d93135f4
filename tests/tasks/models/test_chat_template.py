"""A recipe's chat template: checked when it is read, and no part of the identity where there is none."""

import pytest

from tasks.artifacts import canonical_json
from tasks.models.folders import HubModel, LocalModel


def test_an_empty_template_is_none_with_the_identity_of_none() -> None:
    for empty, none in (
        (LocalModel(path="x", chat_template=""), LocalModel(path="x")),
        (HubModel(id="a/b", chat_template=""), HubModel(id="a/b")),
    ):
        assert empty == none
        assert canonical_json(empty) == canonical_json(none)


def test_a_template_of_wrong_syntax_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValueError, match="expected a chat template in Jinja, found in line 2: "):
        LocalModel(path="x", chat_template="the first line\n{% for m in")


def test_what_chat_templates_may_say_is_accepted_and_nothing_of_it_runs() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
        "{% if nobody %}{{ 'x' * 20000000000 }}{{ raise_exception('no') }}{% endif %}"
    )
    assert LocalModel(path="x", chat_template=template).chat_template == template
