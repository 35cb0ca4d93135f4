"""A line to an S3 server that goes wrong on demand: an HTTP proxy that resets, stalls, cuts, changes and refuses."""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

FaultKind = Literal[
    "reset", "reset in the answer", "lost answer", "answer", "black hole", "cut", "wrong byte", "wrong byte sent"
]
FOR_EVER = 10**9


@dataclass
class Fault:
    """What goes wrong with requests like `GET /bucket/key` that `matching` is found in, after so many, so many times.

    seconds: for so long from the first time on, however often it is.

    reset: before the server hears of it. reset in the answer: half of it arrives. lost answer: the server did it, the
    client hears nothing. answer: the proxy answers with `status` and the S3 error `code`, or with `body`. black hole:
    silence until the time is over, then a reset. cut: the header promises all, half of the body comes. wrong byte: one of the
    answer's body. wrong byte sent: one of the request's body.
    """

    kind: FaultKind
    matching: str = ""
    times: int = 1
    status: int = 503
    code: str = "SlowDown"
    body: bytes | None = None
    after: int = 0
    seconds: float = 0.0


@dataclass
class Line:
    """A proxy's address, what shall go wrong, and how often it did."""

    host: str
    port: int
    url: str = ""
    fault: Fault | None = None
    seen: int = 0
    injected: int = 0
    until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def break_with(self, fault: Fault | None) -> None:
        """From now on this goes wrong, and nothing else."""
        with self.lock:
            self.fault, self.seen, self.injected, self.until = fault, 0, 0, 0.0

    def strike(self, request: str) -> Fault | None:
        """The fault that this request shall meet."""
        with self.lock:
            fault = self.fault
            if fault is None or not re.search(fault.matching, request):
                return None
            self.seen += 1
            if self.seen <= fault.after:
                return None
            if fault.seconds:
                self.until = self.until or time.monotonic() + fault.seconds
            if time.monotonic() >= self.until if fault.seconds else self.injected >= fault.times:
                return None
            self.injected += 1
            return fault


@contextlib.contextmanager
def line_to(server: str) -> Iterator[Line]:
    """A line to the server at `http://host:port`, which works until told otherwise."""
    host, _, port = server.removeprefix("http://").partition(":")
    line, ready, loop = Line(host, int(port)), threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        proxy = await asyncio.start_server(lambda r, w: _handle(line, r, w), "127.0.0.1", 0)
        line.url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield line
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


async def _handle(line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request; the connection is closed after its answer."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, *_ = head.split(b" ", 2)
        if re.search(rb"(?i)\r\nexpect: *100-continue", head):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        fault = line.strike(f"{method.decode()} {path.decode()}")
        if fault is not None and fault.kind == "black hole":
            await asyncio.sleep(max(0.0, line.until - time.monotonic()))
        if fault is not None and fault.kind in ("reset", "black hole"):
            writer.transport.abort()
            return
        if fault is not None and fault.kind == "answer":
            writer.write(_made_up(fault, method))
        else:
            if fault is not None and fault.kind == "wrong byte sent" and body:
                body = _with_a_wrong_byte(body)
            answer = await _ask(line, head, body)
            writer.write(_spoilt(fault, answer))
        with contextlib.suppress(OSError):
            await writer.drain()
        if fault is not None and fault.kind in ("lost answer", "reset in the answer"):
            await asyncio.sleep(0.05)  # half of an answer shall arrive before the reset
            writer.transport.abort()
        writer.close()


async def _ask(line: Line, head: bytes, body: bytes) -> bytes:
    """The server's whole answer, by a connection of its own."""
    head = re.sub(rb"(?i)\r\n(expect|connection):[^\r]*", b"", head)
    reader, writer = await asyncio.open_connection(line.host, line.port)
    writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
    await writer.drain()
    answer = await reader.read(-1)
    writer.close()
    return re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", answer, count=1).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _spoilt(fault: Fault | None, answer: bytes) -> bytes:
    head, gap, body = answer.partition(b"\r\n\r\n")
    match fault.kind if fault else None:
        case "lost answer":
            return b""
        case "reset in the answer":
            return answer[: len(answer) // 2]
        case "cut":
            return head + gap + body[: len(body) // 2]
        case "wrong byte" if body:
            return head + gap + _with_a_wrong_byte(body)
    return answer


def _with_a_wrong_byte(body: bytes) -> bytes:
    place = len(body) // 3
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def _made_up(fault: Fault, method: bytes) -> bytes:
    words = f"<Error><Code>{fault.code}</Code><Message>{fault.code} (made up)</Message></Error>"
    body = fault.body if fault.body is not None else f'<?xml version="1.0" encoding="UTF-8"?>\n{words}'.encode()
    head = f"HTTP/1.1 {fault.status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + (b"" if method == b"HEAD" else body)
