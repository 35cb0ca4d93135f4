"""Reading a Hugging Face `tokenizer.json` (parsed by the caller) for the bytes behind its pieces.

How a piece spells bytes depends on the kind of tokenizer:

| kind | recognised by | the bytes of a piece |
|---|---|---|
| byte-level BPE | a `ByteLevel` step | every character is one byte of a fixed alphabet |
| SentencePiece-like BPE, Unigram | a marker for the space | UTF-8, the marker being a space; `<0xNN>` is one byte |
| WordPiece | `model.type` | UTF-8, a space in front unless it continues a word or is punctuation |
"""

import copy
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from fusion_core.vocabulary.surfaces import Vocabulary

Json = Mapping[str, Any]  # parsed JSON: what a key holds depends on the kind of tokenizer
Spelling = Callable[[str], bytes | None]

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WORD_SPLITTERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit"}
"""Pre-tokenizers that drop what they split at."""


def read_vocabulary(tokenizer_json: Json, roles: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a tokenizer, from its parsed `tokenizer.json` and its special tokens' roles.

    Special added tokens have no bytes; other added tokens (MPT's runs of spaces) have those of their content. The
    unknown token gets no surface unless it also begins or ends texts.

    Raises:
        ValueError: the tokenizer is of a kind whose pieces can't be read as bytes, or this is no tokenizer.
    """
    if "model" not in tokenizer_json:
        raise ValueError(
            f"expected a parsed tokenizer.json, with a model, found the keys {sorted(tokenizer_json)}; pass what the "
            "file of that name holds"
        )
    pieces = _pieces(tokenizer_json["model"])
    added = tokenizer_json.get("added_tokens") or []
    size = max([*pieces.values(), *(token["id"] for token in added)], default=-1) + 1
    surfaces: list[bytes | None] = [None] * size
    names: list[str | None] = [None] * size
    spell = _spelling(tokenizer_json)
    for piece, token in pieces.items():
        surfaces[token], names[token] = spell(piece), piece
    for token in added:
        surfaces[token["id"]] = b"" if token["special"] else token["content"].encode()
        names[token["id"]] = token["content"]
    for role in ("bos", "eos"):
        if role in roles and roles[role] < size:
            surfaces[roles[role]] = b""
    unknown = _unknown_id(tokenizer_json["model"], pieces)
    if unknown is not None and unknown not in (roles.get("bos"), roles.get("eos")):
        surfaces[unknown] = None
    return Vocabulary(
        surfaces=tuple(surfaces),
        roles=dict(roles),
        adds_prefix_space=_adds_prefix_space(tokenizer_json),
        normalizes=_normalizes(tokenizer_json),
        pieces=tuple(names),
        word_marker=_word_marker(tokenizer_json),
    )


def without_prefix_space(tokenizer_json: Json) -> dict[str, Any]:
    """The same tokenizer for text in the middle of a document: no prefix space, no special tokens around the text.

    Not for WordPiece, whose words start with a space by their nature.
    """
    changed = copy.deepcopy(dict(tokenizer_json))
    changed["post_processor"] = None
    for step in _steps(changed, "normalizer"):
        if step["type"] == "Prepend":
            step["prepend"] = ""
    for step in _steps(changed, "pre_tokenizer"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    return changed


def _steps(tokenizer_json: Json, stage: str) -> Iterator[dict[str, Any]]:
    """The steps of a stage ("normalizer", "pre_tokenizer", "decoder") in order, sequences flattened."""
    members = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[stage]
    waiting = [tokenizer_json.get(stage)]
    while waiting:
        step = waiting.pop(0)
        if step and step["type"] == "Sequence":
            waiting = [*step[members], *waiting]
        elif step:
            yield step


def _pieces(model: Json) -> dict[str, int]:
    kind = model.get("type")
    if kind == "Unigram":
        return {piece: token for token, (piece, _) in enumerate(model["vocab"])}
    if kind in ("BPE", "WordPiece") and not model.get("end_of_word_suffix"):
        return dict(model["vocab"])
    found = f"{kind} with an end-of-word suffix" if kind == "BPE" else kind
    raise ValueError(
        f"the bytes of a vocabulary can be read from a BPE, Unigram or WordPiece model, but found {found}; "
        "convert the tokenizer, or leave this model out"
    )


def _unknown_id(model: Json, pieces: Mapping[str, int]) -> int | None:
    if model["type"] == "Unigram":
        return model.get("unk_id")
    return pieces.get(model.get("unk_token") or "")


def _spelling(tokenizer_json: Json) -> Spelling:
    """How a piece of this tokenizer is turned into bytes."""
    model = tokenizer_json["model"]
    if model["type"] == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return lambda piece: _spell_word_piece(piece, prefix)
    if _is_byte_level(tokenizer_json):
        return _spell_byte_level
    marker, byte_fallback = _space_marker(tokenizer_json), bool(model.get("byte_fallback"))
    return lambda piece: _spell_marked(piece, marker, byte_fallback)


def _is_byte_level(tokenizer_json: Json) -> bool:
    stages = ("normalizer", "pre_tokenizer", "decoder")
    return any(step["type"] == "ByteLevel" for stage in stages for step in _steps(tokenizer_json, stage))


def _word_marker(tokenizer_json: Json) -> str:
    if tokenizer_json["model"]["type"] == "WordPiece":
        return ""  # it marks what continues a word, not what begins one
    if _is_byte_level(tokenizer_json):
        return "Ġ"
    return _space_marker(tokenizer_json) or ""


def _spell_byte_level(piece: str) -> bytes | None:
    alphabet = _byte_level_alphabet()
    return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else None


def _spell_marked(piece: str, marker: str | None, byte_fallback: bool) -> bytes:
    if byte_fallback and (byte := BYTE_PIECE.fullmatch(piece)):
        return bytes.fromhex(byte[1])
    return (piece.replace(marker, " ") if marker else piece).encode()


def _spell_word_piece(piece: str, prefix: str) -> bytes:
    if piece.startswith(prefix) and piece != prefix:
        return piece.removeprefix(prefix).encode()
    is_punctuation = len(piece) == 1 and unicodedata.category(piece)[0] == "P"
    return piece.encode() if is_punctuation else f" {piece}".encode()


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """The byte of each character: printable Latin-1 stands for itself, the rest follow from code point 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def _space_marker(tokenizer_json: Json) -> str | None:
    """The character that stands for a space inside pieces, or None."""
    for stage in ("pre_tokenizer", "decoder"):
        for step in _steps(tokenizer_json, stage):
            if step["type"] == "Metaspace":
                return str(step["replacement"])
    for step in _steps(tokenizer_json, "normalizer"):
        if step["type"] == "Replace" and step["pattern"].get("String") == " ":
            return str(step["content"])
    return None


def _adds_prefix_space(tokenizer_json: Json) -> bool:
    if tokenizer_json["model"]["type"] == "WordPiece":
        return True
    for step in (*_steps(tokenizer_json, "normalizer"), *_steps(tokenizer_json, "pre_tokenizer")):
        if step["type"] == "Prepend":
            return bool(step["prepend"])
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return True
        if step["type"] == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
    return False


def _normalizes(tokenizer_json: Json) -> bool:
    """Whether any step can change or drop text, a space's marker and the prefix space apart."""
    marker = _space_marker(tokenizer_json)
    for step in _steps(tokenizer_json, "normalizer"):
        marks_spaces = step["type"] == "Replace" and step["pattern"].get("String") == " " and step["content"] == marker
        prepends_space = step["type"] == "Prepend" and step["prepend"] in ("", " ", marker)
        if not (marks_spaces or prepends_space or step["type"] == "ByteLevel"):
            return True
    drops = any(
        step["type"] in WORD_SPLITTERS or step.get("behavior") == "Removed"
        for step in _steps(tokenizer_json, "pre_tokenizer")
    )
    ordinary = [token for token in tokenizer_json.get("added_tokens") or [] if not token["special"]]
    strips = any(token["lstrip"] or token["rstrip"] for token in ordinary)
    # an added token cuts the text in two, and most tokenizers put their prefix space before each part
    repeats_prefix = bool(ordinary) and _adds_prefix_space(tokenizer_json)
    return drops or strips or repeats_prefix or tokenizer_json["model"]["type"] == "WordPiece"
