"""A line to an S3 server that goes wrong on demand: an HTTP proxy that resets, stalls, cuts, changes and refuses."""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

FaultKind = Literal[
    "reset", "reset in the answer", "lost answer", "answer", "black hole", "cut", "wrong byte", "wrong byte sent",
    "server dies", "server dies afterwards",
]  # fmt: skip
FOR_EVER = 10**9


@dataclass
class Fault:
    """What goes wrong with requests like `GET /bucket/key` that `matching` is found in, after so many, so many times.

    seconds: for so long from the first time on, however often it is.

    reset: before the server hears of it. reset in the answer: half of it arrives. lost answer: the server did it, the
    client hears nothing. answer: the proxy answers with `status` and the S3 error `code`, or with `body`. black hole:
    silence until the time is over, then a reset. cut: the header promises all, half of the body comes. wrong byte: in
    the answer's body. wrong byte sent: in the request's. server dies: by the line's `outage`, with half of the
    request's body sent, or half of the answer passed on. server dies afterwards: once it has answered in full.
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
    outage: Callable[[], None] = lambda: None
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
    line, ready, stop = Line(host, int(port)), threading.Event(), asyncio.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with await asyncio.start_server(lambda r, w: _handle(line, r, w), "127.0.0.1", 0) as proxy:
            line.url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
            ready.set()
            await stop.wait()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield line
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(5)


async def _handle(line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request; the connection is closed after its answer."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, *_ = head.split(b" ", 2)
        if re.search(rb"(?i)\r\nexpect: *100-continue", head):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        fault = line.strike(f"{method.decode()} {path.decode()}")
        kind = fault.kind if fault else None
        if kind == "black hole":
            await asyncio.sleep(max(0.0, line.until - time.monotonic()))
        if fault is not None and kind == "answer":
            writer.write(_make_up(fault, method))
        elif kind == "server dies":
            writer.write(await _ask_halfway(line, head, body))
        elif kind not in ("reset", "black hole"):
            sent = _with_a_wrong_byte(body) if kind == "wrong byte sent" and body else body
            answer = await _ask(line, head, sent)
            if kind == "server dies afterwards":
                await asyncio.to_thread(line.outage)
            writer.write(_spoil(kind, answer))
            await writer.drain()
        if kind in ("reset in the answer", "server dies"):
            await asyncio.sleep(0.05)  # half of the answer shall arrive before the reset
        if kind in ("reset", "black hole", "lost answer", "reset in the answer", "server dies"):
            writer.transport.abort()


async def _ask(line: Line, head: bytes, body: bytes) -> bytes:
    """The server's whole answer, by a connection of its own."""
    reader, writer = await _send(line, head, body)
    answer = await reader.read(-1)
    writer.close()
    return re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", answer, count=1).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


async def _ask_halfway(line: Line, head: bytes, body: bytes) -> bytes:
    """An answer with half of the body that had come when the server died; none if that was at half of the request."""
    reader, writer = await _send(line, head, body[: len(body) // 2])
    begun = b"" if body else await reader.readuntil(b"\r\n\r\n")
    come = b"" if body else await reader.read(1 << 16)
    await asyncio.to_thread(line.outage)
    writer.close()
    return begun + come[: len(come) // 2]


async def _send(line: Line, head: bytes, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    head = re.sub(rb"(?i)\r\n(expect|connection):[^\r]*", b"", head)
    reader, writer = await asyncio.open_connection(line.host, line.port)
    writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
    await writer.drain()
    return reader, writer


def _spoil(kind: FaultKind | None, answer: bytes) -> bytes:
    head, gap, body = answer.partition(b"\r\n\r\n")
    match kind:
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


def _make_up(fault: Fault, method: bytes) -> bytes:
    words = f"<Error><Code>{fault.code}</Code><Message>{fault.code} (made up)</Message></Error>"
    body = fault.body if fault.body is not None else f'<?xml version="1.0" encoding="UTF-8"?>\n{words}'.encode()
    head = f"HTTP/1.1 {fault.status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + (b"" if method == b"HEAD" else body)
