"""Secrets: addresses that hold one are refused, and words for people have every one of this process taken out.

Credentials belong into the environment, a profile or a role, where the clients of stores and hubs look for them. An
address with a password in it would be copied into manifests, run records, reports and Prefect's parameters.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator, Field

HIDDEN = "***"
_SHORTEST = 8
"""Of a variable's value that is hidden: shorter ones are words of tests, and stand everywhere by chance."""


def _login(outside: str) -> str:
    """The pattern of a login after `://`, through its last `@`; outside: what never stands in a URL.

    A secret may hold a slash: what follows the first colon is a login unless it is a port. Without a colon a slash
    ends it, since the `@` may belong to the path.
    """
    return rf"(?:[^:/\[{outside}]*:(?!\d{{1,5}}(?:[/?#]|$))[^{outside}]*|[^/{outside}]*)@"


_LOGIN = re.compile(r"(?<=://)" + _login(r"\s"))
_LOGIN_IN_WORDS = re.compile(r"(?<=://)" + _login(r"\s'\""))
_SIGNED = (
    r"password|x-amz-signature|x-amz-credential|x-amz-security-token|signature|sig|token|access_token|awsaccesskeyid"
    r"|api_?key|key"
)
_QUERY = re.compile(rf"(?<=[?&])((?:{_SIGNED})=)[^&;\s'\"]+", re.IGNORECASE)
_TOKENS = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH_STRING|API_KEY|ACCESS_KEY")
_URL_VARIABLE = re.compile(r"CONNECTION_URL|POSTGRES|PROXY")
_OPEN_VARIABLE = re.compile(r"(?:\bNO_PROXY|_(?:FILE|PATH|USER|DB|HOST))$")  # of words that messages are full of
_REPOSITORY = "github://"  # github://owner:repository@branch/path


def refuse_credentials(address: str) -> str:
    """The address itself: a path, or a URL that anyone may read.

    Raises `ValueError`, without the secret, for a URL with a user or password, or with a signature in its query.
    """
    hidden = _QUERY.sub(rf"\1{HIDDEN}", address)
    if not address.startswith(_REPOSITORY):
        hidden = _LOGIN.sub(f"{HIDDEN}@", hidden)
    if hidden != address:
        raise ValueError(
            f"expected an address without credentials, found {hidden}; put them into the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://) or the client's own configuration"
        )
    return address


Address = Annotated[
    str,
    AfterValidator(refuse_credentials),
    Field(json_schema_extra={"not": {"pattern": r"^(?!github://).*://" + _login(r"\s")}}),
]
"""A path or URL that anyone may read. Prefect's server refuses a login in it by the schema, before it is stored."""


def redact(text: str) -> str:
    """The text with `***` for each secret: logins in URLs, signatures, tokens, values of variables that name one."""
    for value in _values():
        text = text.replace(value, HIDDEN)
    text = _QUERY.sub(rf"\1{HIDDEN}", _LOGIN_IN_WORDS.sub(f"{HIDDEN}@", text))
    return _TOKENS.sub(HIDDEN, text)


def _values() -> list[str]:
    """The values that variables of this process hide, longest first: one may be part of another."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _OPEN_VARIABLE.search(name.upper()):
            continue
        if _VARIABLE.search(name.upper()):
            found.add(value.strip())  # files of secrets end in a line break
        elif _URL_VARIABLE.search(name.upper()):
            found |= _passwords(value)
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)


def _passwords(url: str) -> set[str]:
    """What its login hides, as written and as it is meant: all but a user's name; of a proxy the scheme may lack."""
    login = _LOGIN.search(url if "://" in url else f"://{url}")
    if login is None:
        return set()
    user, colon, password = login[0].removesuffix("@").partition(":")
    secret = password if colon else user
    return {secret, unquote(secret)}


@contextlib.contextmanager
def hiding_secrets() -> Iterator[None]:
    """Within the block, or the function that it decorates, errors leave without secrets in their words.

    For whatever is shown or recorded elsewhere: Prefect keeps a failed step's message and traceback.
    """
    try:
        yield
    except Exception as error:
        redact_error(error)
        raise


def redact_error(error: BaseException) -> None:
    """Takes secrets out of an error's words and out of those that it came from, in place.

    A cause whose words can't be changed is cut off. An error whose words can't be changed is what its type says.
    """
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        _redact_words(current)
        for link in ("__cause__", "__context__"):
            origin = getattr(current, link)
            if origin is None:
                continue
            _redact_words(origin)
            if _leaks(origin):
                setattr(current, link, None)
            else:
                pending.append(origin)
        pending += getattr(current, "exceptions", ()) or ()


def _redact_words(error: BaseException) -> None:
    if not _leaks(error):
        return
    error.args = tuple(redact(part) if isinstance(part, str) else part for part in error.args)
    for name in ("strerror", "filename", "filename2", "message", "msg"):
        if isinstance(text := getattr(error, name, None), str):
            with contextlib.suppress(AttributeError, TypeError):
                setattr(error, name, redact(text))
    error.__notes__ = [redact(note) for note in getattr(error, "__notes__", ())]
    if _leaks(error):
        words = redact(str(error))
        with contextlib.suppress(TypeError):  # classes of C and Rust keep their own way to tell
            error.__class__ = type(type(error).__name__, (type(error),), {"__str__": lambda _: words})


def _leaks(error: BaseException) -> bool:
    return any(redact(text) != text for text in (str(error), repr(error.args), *getattr(error, "__notes__", ())))
