"""Conversations become documents: what of them is text, what they are known by, and what is left out."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Runtime, ShardRef, canonical_json
from tasks.corpora.conversations import all_words, exchange, messages_and_tools, read_conversation, read_tools
from tasks.corpora.documents import Document, digest_of, read_documents, shards_of
from tasks.corpora.overlap import Decontamination, ExactDuplicates, NearDuplicates
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.storage.store import open_store

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the dog?"},
    {"role": "assistant", "content": "quick\n"},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "sum", "arguments": {"of": "one two"}}]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "I call.", "tool_calls": [{"name": "sum"}]},
    {"role": "assistant", "content": "It is three.", "tool_calls": []},
]
SUM: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "sum",
        "description": "Adds é numbers.",
        "parameters": {"type": "object", "properties": {"of": {"type": "string", "default": "0"}}, "required": ["of"]},
    },
}


def _build(
    folder: Path, rows: list[Any], held_out: Sequence[ShardRef] = (), **choices: Any
) -> tuple[list[Document], dict[str, Any]]:
    """The corpus of these rows, a column `messages` each, and what its manifest says."""
    return _build_columns(folder, [{"messages": row} for row in rows], held_out, **choices)


def _build_columns(
    folder: Path, rows: list[dict[str, Any]], held_out: Sequence[ShardRef] = (), **choices: Any
) -> tuple[list[Document], dict[str, Any]]:
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Files(paths=(f"{folder}/chats.jsonl",), format="jsonl", text_field="messages", tools_field="tools")
    runtime = Runtime(root=str(folder / "store"))
    corpus = build_corpus.fn(CorpusSpec(documents=(source,), **choices), [], held_out, runtime=runtime)
    store = open_store(runtime)
    manifest = store.manifest(corpus)
    assert manifest is not None
    return [piece for shard in shards_of(corpus, runtime) for piece in read_documents(store, shard)], manifest.facts


def test_the_text_is_what_the_assistant_says_where_it_calls_no_tools() -> None:
    assert read_conversation(CHAT, "chat").text == "quick\nIt is three."


def test_every_word_of_anybody_counts_for_what_is_left_out() -> None:
    said = all_words(read_conversation(CHAT, "chat")).split("\n")
    for words in ("Be brief.", "the dog?", "quick", "one two", "sum", "3", "I call.", "It is three."):
        assert words in said
    assert "user" not in said


def test_a_conversation_is_known_by_all_its_messages_and_null_is_nothing() -> None:
    one = read_conversation(CHAT, "chat")
    assert one.id == read_conversation([{**m, "name": None} for m in CHAT], "other").id
    assert one.id != read_conversation([{**CHAT[0], "content": "Be long."}, *CHAT[1:]], "chat").id


def test_only_what_templates_read_is_kept_and_known() -> None:
    odd = [{**m, "timestamp": datetime(2024, 1, 1, tzinfo=UTC), "weight": 1} for m in CHAT]
    assert read_conversation(odd, "chat") == read_conversation(CHAT, "chat")


def test_null_within_a_field_is_said_in_jsonl_and_padding_in_a_table() -> None:
    limited, free = (
        [{"role": "assistant", "tool_calls": [{"name": "find", "arguments": arguments}]}, CHAT[2]]
        for arguments in ({"limit": None}, {})
    )
    assert read_conversation(limited, "chat").id != read_conversation(free, "chat").id
    assert json.loads(read_conversation(limited, "chat").messages) == limited
    assert read_conversation(limited, "chat", padded=True) == read_conversation(free, "chat", padded=True)


def test_the_older_form_of_a_tool_call_is_one_and_no_text() -> None:
    call = {"name": "sum", "arguments": "{}"}
    older = [CHAT[1], {"role": "assistant", "content": "I call.", "function_call": call}, CHAT[6]]
    newer = [CHAT[1], {**CHAT[5], "tool_calls": [{"type": "function", "function": call}]}, CHAT[6]]
    assert read_conversation(older, "chat") == read_conversation(newer, "chat")
    assert read_conversation(older, "chat").text == "It is three."
    absent = [{**m, "function_call": {"name": None}} for m in CHAT]
    assert read_conversation(absent, "chat", padded=True) == read_conversation(CHAT, "chat", padded=True)


def test_jsonl_and_parquet_give_the_same_conversations(tmp_path: Path) -> None:
    documents, facts = _build(tmp_path, [CHAT, CHAT[:3]])
    pq.write_table(pa.Table.from_pylist([{"talk": CHAT}, {"talk": CHAT[:3]}]), tmp_path / "chats.parquet")
    source = Files(paths=(f"{tmp_path}/chats.parquet",), format="parquet", text_field="talk")
    runtime = Runtime(root=str(tmp_path / "store"))
    (shard,) = shards_of(build_corpus.fn(CorpusSpec(documents=(source,)), [], runtime=runtime), runtime)
    assert read_documents(open_store(runtime), shard) == documents
    assert facts["bytes"] == sum(len(document.text) for document in documents)


def test_a_conversation_is_whole_or_left_out(tmp_path: Path) -> None:
    long = [*CHAT, {"role": "user", "content": "?" * 2000}]
    documents, facts = _build(tmp_path, [CHAT, long])
    assert [json.loads(document.messages)[0] for document in documents] == [CHAT[0]]
    assert (facts["documents"], facts["too_long"]) == (1, 1)


def test_conversations_that_differ_in_a_question_alone_are_no_duplicates(tmp_path: Path) -> None:
    other = [CHAT[0], {"role": "user", "content": "the cat?"}, *CHAT[2:]]
    documents, facts = _build(tmp_path, [CHAT, other, CHAT], duplicates=ExactDuplicates())
    assert len(documents) == 2
    assert facts["duplicates"] == 1


def test_conversations_that_share_a_system_message_alone_are_no_near_duplicates(tmp_path: Path) -> None:
    system = {"role": "system", "content": " ".join(f"rule{number}" for number in range(300))}
    asked = ["what is two plus two in words", "name one long river in Egypt", "what is two plus two in words"]
    rows = [[system, {"role": "user", "content": question}, CHAT[6]] for question in asked]
    rows[2][0] = CHAT[0]
    documents, facts = _build(tmp_path, rows, duplicates=NearDuplicates(), max_bytes=4096)
    assert [json.loads(document.messages) for document in documents] == rows[:2]
    assert facts["duplicates"] == 1
    assert _build(tmp_path, rows, duplicates=ExactDuplicates(), max_bytes=4096)[1]["duplicates"] == 0


@pytest.mark.parametrize("where", ["evaluation", "against"])
def test_a_held_out_conversation_is_left_out_and_what_it_shares_with_others_is_not(tmp_path: Path, where: str) -> None:
    system = {"role": "system", "content": " ".join(f"rule{number}" for number in range(20))}
    long, short = {"role": "user", "content": "dog " * 20}, {"role": "user", "content": "the cat?"}
    (tmp_path / "held.jsonl").write_text(
        "".join(json.dumps({"text": [system, m, CHAT[6]]}) + "\n" for m in (long, short))
    )
    held = Files(paths=(f"{tmp_path}/held.jsonl",), format="jsonl")
    runtime = Runtime(root=str(tmp_path / "store"))
    evaluation = build_corpus.fn(CorpusSpec(documents=(held,)), [], runtime=runtime)
    shards, against = (shards_of(evaluation, runtime), ()) if where == "evaluation" else ([], (held,))
    other = [system, CHAT[1], CHAT[6]]
    rows = [[system, long, CHAT[6]], [system, short, CHAT[6]], [long, CHAT[2]], [short, CHAT[6]], other]
    documents, facts = _build(tmp_path, rows, shards, decontamination=Decontamination(against=against))
    assert [json.loads(document.messages) for document in documents] == [other]
    assert (facts["documents"], facts["held_out"]) == (1, 4)


def test_what_the_assistant_says_is_looked_for_by_itself(tmp_path: Path) -> None:
    answer = "the quick brown dog jumps over the lazy fox today"
    (tmp_path / "held.txt").write_text(answer)
    rule = Decontamination(max_overlap=0.5, against=(Files(paths=(f"{tmp_path}/held.txt",)),))
    chat = [{"role": "user", "content": "cat " * 20}, {"role": "assistant", "content": answer}]
    documents, facts = _build(tmp_path, [CHAT, chat], decontamination=rule)
    assert len(documents) == facts["held_out"] == 1


def test_held_out_text_is_found_wherever_somebody_says_it(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("who is the quick brown dog that jumps over the lazy fox today")
    asked = [{"role": "user", "content": "Who is\nthe quick brown dog that jumps over the lazy fox today?"}, CHAT[2]]
    rule = Decontamination(ngram=8, against=(Files(paths=(f"{tmp_path}/held.txt",)),))
    documents, facts = _build(tmp_path, [CHAT, asked], decontamination=rule)
    assert len(documents) == facts["held_out"] == 1


def _nested(levels: int) -> list[dict[str, Any]]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return [{"role": "assistant", "tool_calls": value}, CHAT[2]]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (["hello"], "expected messages with a role each, found message 0 without"),
        ([CHAT[0], {"content": "no role"}], "expected messages with a role each, found message 1 without"),
        ([{"role": "user", "content": [{"type": "image"}]}], "expected text as the content of message 0, found list"),
        ([{"role": "user", "content": "\ud800"}], r"expected text that UTF-8 can hold, found a lone surrogate U\+D800"),
        (_nested(40), "expected at most 32 levels in the tool_calls of message 0, found more; mend or remove the row"),
        (_nested(495), "expected at most 32 levels in the tool_calls of message 0, found more; mend or remove the row"),
        (CHAT[:2], "expected a document of two characters or more, found 0"),
        ({"role": "user"}, "expected text in column 'messages', found dict; set text_field"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(tmp_path: Path, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"chats\.jsonl, row 0.*: {sentence}"):
        _build(tmp_path, [value])


def test_what_json_cannot_say_is_refused_with_its_row(tmp_path: Path) -> None:
    chat = [{"role": "assistant", "tool_calls": [{"name": "at", "arguments": {"of": datetime(2024, 1, 1)}}]}, CHAT[2]]
    pq.write_table(pa.Table.from_pylist([{"text": chat}]), tmp_path / "chats.parquet")
    source = Files(paths=(f"{tmp_path}/chats.parquet",), format="parquet")
    with pytest.raises(
        ValueError, match=r"chats\.parquet, row 0.*: expected text, numbers, .* tool_calls of message 0, found datetime"
    ):
        build_corpus.fn(CorpusSpec(documents=(source,)), [], runtime=Runtime(root=str(tmp_path / "store")))


def test_a_conversation_without_tools_has_the_identity_that_it_always_had() -> None:
    document = read_conversation(CHAT, "chat", read_tools(None))
    kept = [{name: value for name, value in message.items() if value is not None} for message in CHAT]
    assert document.id == "ad1735c77d3b9378"
    assert digest_of([document]) == "6d1a8e18efbaceab668a787a5257f575"
    assert document.messages == json.dumps(kept, sort_keys=True)
    assert canonical_json(Files(paths=("x",), tools_field="")) == canonical_json(Files(paths=("x",)))
    assert "tools" not in canonical_json(Files(paths=("x",)))


def test_a_conversation_is_known_by_its_tools_as_by_its_messages_and_its_text_is_the_same() -> None:
    offering, bare = read_conversation(CHAT, "chat", [SUM]), read_conversation(CHAT, "chat")
    assert messages_and_tools(offering) == (messages_and_tools(bare)[0], [SUM])
    assert list(messages_and_tools(offering)[1][0]["function"]) == ["name", "description", "parameters"]
    assert len({offering.id, bare.id, read_conversation(CHAT, "chat", [SUM, SUM]).id}) == 3
    assert (offering.text, exchange(offering)) == (bare.text, exchange(bare))
    assert offering.num_bytes >= bare.num_bytes + len(json.dumps([SUM], ensure_ascii=False).encode())
    assert set(all_words(offering).split("\n")) >= {*all_words(bare).split("\n"), "Adds é numbers."}


@pytest.mark.parametrize(
    "written",
    [
        [SUM],
        json.dumps([SUM]),
        json.dumps([SUM], indent=1),
        [SUM["function"]],
        [{"type": "function", **SUM["function"]}],
    ],
)
def test_tools_are_a_list_or_one_as_json_with_an_envelope_or_without(written: object) -> None:
    assert read_tools(written) == [SUM]


def test_null_in_a_definition_is_padding_in_a_table_and_written_in_json() -> None:
    optional = {"type": "function", "function": {"name": "find", "default": None}}
    assert read_tools([optional]) == read_tools(json.dumps([optional]), padded=True) == [optional]
    assert read_tools([optional], padded=True) == [{"type": "function", "function": {"name": "find"}}]


def test_rows_without_tools_are_conversations_as_ever(tmp_path: Path) -> None:
    none: tuple[object, ...] = (None, [], "", " ", "[]", "null")
    rows: list[dict[str, Any]] = [{"messages": CHAT, "tools": tools} for tools in none]
    documents, _ = _build_columns(tmp_path, [*rows, {"messages": CHAT}, {"messages": CHAT, "tools": [SUM]}])
    assert documents == [read_conversation(CHAT, "text")] * 7 + [read_conversation(CHAT, "text", [SUM])]


def test_a_table_gives_the_tools_that_jsonl_gives_without_its_padding(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "find", "description": "Finds.", "strict": True}}
    table = [{"messages": CHAT, "tools": tools} for tools in ([SUM, other], None)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "chats.parquet")
    source = Files(paths=(f"{tmp_path}/chats.parquet",), format="parquet", text_field="messages", tools_field="tools")
    runtime = Runtime(root=str(tmp_path / "store"))
    (shard,) = shards_of(build_corpus.fn(CorpusSpec(documents=(source,)), [], runtime=runtime), runtime)
    assert read_documents(open_store(runtime), shard) == _build_columns(tmp_path, table)[0]
    wrong = source.model_copy(update={"tools_field": "functions"})
    with pytest.raises(
        ValueError, match=r"row 0: expected tools in column 'functions', found columns messages, tools;"
    ):
        build_corpus.fn(CorpusSpec(documents=(wrong,)), [], runtime=runtime)


def test_conversations_that_differ_in_their_tools_alone_are_near_duplicates_and_no_exact_ones(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "tools": tools} for tools in ([SUM], [SUM, SUM], None, [SUM])]
    assert _build_columns(tmp_path, rows, duplicates=ExactDuplicates())[1]["duplicates"] == 1
    assert _build_columns(tmp_path, rows, duplicates=NearDuplicates())[1]["duplicates"] == 3


def test_definitions_count_for_what_is_too_long_and_where_held_out_text_is_looked_for(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": CHAT, "tools": [SUM] * 20}]
    assert _build_columns(tmp_path, rows)[1]["too_long"] == 1
    (tmp_path / "held.txt").write_text("one two three four five six seven eight")
    rule = Decontamination(ngram=8, against=(Files(paths=(f"{tmp_path}/held.txt",)),))
    leaking = [{"name": "sum", "description": "Such as: one two three four five six seven eight."}]
    documents, facts = _build_columns(tmp_path, [rows[0], {"messages": CHAT, "tools": leaking}], decontamination=rule)
    assert len(documents) == facts["held_out"] == 1


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (3, "expected a list of tools, found int; set tools_field, or mend or remove the row"),
        (SUM, "expected a list of tools, found dict; set tools_field"),
        (json.dumps(SUM), "expected a list of tools, found dict; set tools_field"),
        ("sum(of)", "expected a list of tools, or one as JSON, found text that isn't JSON .*; set tools_field"),
        ("[" * 100_000, "expected a list of tools, or one as JSON, found text that isn't JSON .*recursion"),
        ([SUM, "sum"], "expected objects as the tools, found str as tool 1; mend or remove the row"),
        ([SUM, _nested(40)[0]], "expected at most 32 levels in the definition of tool 1, found more; mend or remove"),
        ('[{"name": "\\ud800"}]', r"expected text that UTF-8 can hold, found a lone surrogate U\+D800 at .* 'tools'"),
    ],
)
def test_what_is_no_list_of_tools_is_refused_with_its_row_and_column(
    tmp_path: Path, value: object, sentence: str
) -> None:
    place = r"chats\.jsonl, row 1(, column 'tools')?: "
    with pytest.raises(ValueError, match=place + sentence):
        _build_columns(tmp_path, [{"messages": CHAT}, {"messages": CHAT, "tools": value}])
