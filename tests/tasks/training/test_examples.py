"""Sequences and teachers are read where they are asked for, and are what the shards hold."""

import itertools
from pathlib import Path

import pytest
import torch

from fusion_core.types import TokenDist
from tasks.corpora.documents import read_documents
from tasks.formats.shards import FusedRows, read_fused
from tasks.training.examples import Examples, write_sequences
from tests.tasks.training.conftest import Lesson


def _same(found: TokenDist, expected: TokenDist) -> None:
    assert found.vocab_size == expected.vocab_size
    for name in ("row_offsets", "ids", "logprobs", "tail_logprob", "unknown_logprob"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_rows_read_alone_are_those_of_the_whole_teacher(lesson: Lesson) -> None:
    for ref in lesson.teachers:
        folder = lesson.store.fetch(ref)
        whole, rows = read_fused(folder).dist, FusedRows(folder)
        assert (rows.num_rows, rows.vocab_size) == (whole.num_rows, whole.vocab_size)
        for start, stop in ((0, 1), (0, whole.num_rows), (3, 9), (5, 5), (whole.num_rows, whole.num_rows)):
            _same(rows.rows(start, stop), whole.rows(start, stop))


def test_sequences_go_with_their_teachers_rows_and_documents_names(lesson: Lesson, tmp_path: Path) -> None:
    write_sequences(lesson.store, lesson.target, lesson.shards, tmp_path)
    examples = Examples(lesson.store, tmp_path, lesson.shards, lesson.teachers)
    plain = Examples(lesson.store, tmp_path, lesson.shards, [])
    number = 0
    for shard, ref in zip(lesson.shards, lesson.teachers, strict=True):
        dist = read_fused(lesson.store.fetch(ref)).dist
        start = 0
        for document in read_documents(lesson.store, shard):
            example = examples[number]
            assert example.teacher is not None
            _same(example.teacher, dist.rows(start, start + len(example.ids)))
            assert plain[number].teacher is None
            assert torch.equal(plain[number].ids, example.ids)
            assert plain[number].mark == example.mark
            assert examples.document(number) == document.id
            start += len(example.ids)
            number += 1
    assert len(examples) == number
    assert examples.num_tokens == sum(len(examples[n].ids) for n in range(number))
    marks = [examples[n].mark for n in range(number)]
    same = [torch.equal(examples[a].ids, examples[b].ids) for a, b in itertools.combinations(range(number), 2)]
    assert len(set(marks)) == number or any(same)


def test_a_teacher_of_other_rows_is_refused(lesson: Lesson, tmp_path: Path) -> None:
    write_sequences(lesson.store, lesson.target, lesson.shards, tmp_path)
    with pytest.raises(
        ValueError, match=r"shard 0: expected a teacher of \d+ rows over 400 tokens, found \d+ over 400"
    ):
        Examples(lesson.store, tmp_path, lesson.shards, lesson.teachers[::-1])
