"""Small JSON records that notice when a byte of them has changed: the last field is the SHA-256 of all before it."""

import hashlib
import re

_END = b"\n}"
_SEAL = re.compile(rb',\n "seal": "([0-9a-f]{64})"\n\}\Z')


def seal(record: str) -> bytes:
    """The record with its seal as the last field. `record` is an object as `model_dump_json(indent=1)` writes it."""
    body = record.encode()
    assert body.endswith(_END), "expected a JSON object of several lines"
    return body.removesuffix(_END) + f',\n "seal": "{hashlib.sha256(body).hexdigest()}"'.encode() + _END


def is_intact(data: bytes) -> bool:
    """Whether the record is as it was sealed; one without a seal is taken for intact.

    That is safe: damage of one place hits either the record, and the seal tells, or the seal alone; and what was cut
    short is no JSON any more.
    """
    found = _SEAL.search(data)
    if found is None:
        return True
    return hashlib.sha256(data[: found.start()] + _END).hexdigest().encode() == found[1]
