"""Runs one program with as little of this machine in reach as the kernel allows: `python -I confined.py JOB`.

The standard library alone, and no module of the project: this file is run by its path. It limits itself, says on its
standard output what holds, runs the program in the same process, and says `passed` only when the program came to its
end. What is out of its reach is said in `tasks.evaluation.sandbox`.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SIGKILL = 9

# Denied system calls: sockets, programs, processes, signals, and what has no use here but a record of holes. Of each
# architecture: its number in a filter, that of clone, and those denied.
_CALLS = {
    "x86_64": (
        0xC000003E,
        56,
        "41 57 58 59 62 101 129 165 200 234 250 272 297 298 308 310 311 321 322 323 424 425 438",
    ),
    "aarch64": (0xC00000B7, 220, "198 221 129 117 138 40 130 131 219 97 240 241 268 270 271 280 281 282 424 425 438"),
}
_CLONE3, _CLONE_THREAD = 435, 0x10000
_X32 = 0x40000000  # the same calls under other numbers
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 1 << 2 | 1 << 3  # files and folders
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # the rights that a file can have: run, write, read, truncate


def limit_resources(seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Bounds CPU time, memory, the size of a file, and forbids core files."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    for which, bound in limits.items():
        resource.setrlimit(which, (bound, bound))


def restrict_files(libc: ctypes.CDLL, folder: str) -> bool:
    """Whether only `folder` can be written, and besides it only Python's own files read, from now on (Landlock)."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    handled = (1 << min(12 + version, 15)) - 1
    rules = libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", handled), 8, 0)
    if rules < 0:
        return False
    readable = [sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64", "/dev/null", "/dev/urandom"]
    for path, rights in [(folder, handled), *((path, _READ) for path in readable)]:
        with contextlib.suppress(FileNotFoundError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights if os.path.isdir(path) else rights & _OF_FILES  # noqa: PTH112 - pathlib loads much more
            if libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed & handled, place), 0) < 0:
                return False
            os.close(place)
    return bool(libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0)


def deny_calls(libc: ctypes.CDLL) -> bool:
    """Whether sockets, other programs and processes, and signals are denied from now on (seccomp). Threads are not."""
    if platform.machine() not in _CALLS:
        return False
    architecture, clone, listed = _CALLS[platform.machine()]
    numbers = [int(number) for number in listed.split()]
    load, equal, at_least, has_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06  # of the filter's machine
    allow, deny, unknown = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
    last = 10 + len(numbers)  # the line that denies; jumps count from the line after their own
    program = [(load, 0, 0, 4), (equal, 0, last - 2, architecture), (load, 0, 0, 0), (at_least, last - 4, 0, _X32)]
    program += [(equal, last - line - 1, 0, number) for line, number in enumerate(numbers, start=4)]
    program += [(equal, 0, 1, _CLONE3), (give, 0, 0, unknown)]  # its flags lie in memory; libraries fall back to clone
    program += [(equal, 0, 2, clone), (load, 0, 0, 16), (has_bit, 0, 1, _CLONE_THREAD)]
    program += [(give, 0, 0, allow), (give, 0, 0, deny)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    return bool(libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(head), 0, 0) == 0)


def main() -> None:
    """Confines this process to the working directory and runs the program there."""
    with open(sys.argv[1], encoding="utf-8") as stream:  # noqa: PTH123 - pathlib loads much more
        job = json.load(stream)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    null = os.open("/dev/null", os.O_RDWR)
    limit_resources(job["seconds"], job["memory_bytes"], job["file_bytes"])
    holds = {"files": restrict_files(libc, os.getcwd()), "network": deny_calls(libc)}  # noqa: PTH109
    os.write(1, json.dumps(holds).encode() + b"\n")
    if not holds["network"] or (job["needs_files"] and not holds["files"]):
        return
    words = os.dup(1)
    for stream_number in (0, 1, 2):
        os.dup2(null, stream_number)
    exec(compile(job["program"], "program", "exec"), {"__name__": "__main__"})  # the whole purpose of this file
    os.write(words, b"passed\n")


if __name__ == "__main__":
    main()
