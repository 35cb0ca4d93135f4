"""Where one shard of a corpus ends and the next begins. Pieces stay in their order; no choice is left to workers."""

from collections.abc import Iterable, Iterator

from tasks.corpora.documents import Document


def cut_by_size(pieces: Iterable[Document], shard_bytes: int) -> Iterator[list[Document]]:
    """Shards of at most `shard_bytes` of text, each filled up before the next begins.

    A document added in the middle may move the limits of every shard behind it. A larger piece is a shard by itself.
    """
    shard: list[Document] = []
    size = 0
    for piece in pieces:
        length = piece.num_bytes
        if shard and size + length > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(piece)
        size += length
    if shard:
        yield shard


def cut_by_content(pieces: Iterable[Document], shard_bytes: int) -> Iterator[list[Document]]:
    """Shards of about `shard_bytes` of text, half to twice, that end where a document's own id says so.

    A document that is added, edited or removed changes the shard that it lies in and seldom more than one behind: from
    the next end that the old corpus had too, both are the same. The chance that a document ends a shard is in
    proportion to its length, so sizes don't depend on how long documents are; one larger than twice `shard_bytes`
    is divided.
    """
    shard: list[Document] = []
    size = of_document = 0
    for piece in pieces:
        length = piece.num_bytes
        if shard and size + length > 2 * shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(piece)
        size += length
        of_document += length
        if piece.final:
            if 2 * size >= shard_bytes and int(piece.id, 16) * shard_bytes < 2 * of_document * 16 ** len(piece.id):
                yield shard
                shard, size = [], 0
            of_document = 0
    if shard:
        yield shard
