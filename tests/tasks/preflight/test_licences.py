"""Licences that don't go together."""

import pytest

from tasks.preflight.licences import find_licence_conflicts


def find(target, sources=(), data=()):
    named = {f"source-{n}": licence for n, licence in enumerate(sources)}
    return find_licence_conflicts(("target", target), named, {f"data-{n}": lic for n, lic in enumerate(data)})


def test_free_licences_ask_for_nothing():
    assert find("apache-2.0", ["mit", "bsd-3-clause"], ["cc0-1.0", "odc-by"]) == []


@pytest.mark.parametrize(
    ("target", "sources", "data", "subject"),
    [
        ("apache-2.0", ["llama2"], [], "source-0"),
        ("llama2", ["mit", "llama3"], [], "source-1"),
        ("mit", [], ["cc-by-nd-4.0"], "data-0"),
        ("gpl-3.0", [], ["cc-by-sa-4.0"], "target"),
    ],
)
def test_licences_that_exclude_each_other_are_conflicts(target, sources, data, subject):
    assert [f.subject for f in find(target, sources, data) if f.severity == "conflict"] == [subject]


@pytest.mark.parametrize("licence", [None, "other", "cc-by-nc-4.0", "cc-by-sa-4.0", "gemma", "llama3.1", "made-up-1"])
def test_conditions_are_named_without_being_conflicts(licence):
    found = find("mit", [licence])
    assert found
    assert {(f.subject, f.severity) for f in found} == {("source-0", "note")}


def test_llama_may_teach_llama():
    assert [f for f in find("llama2", ["llama2"]) if f.severity == "conflict"] == []
