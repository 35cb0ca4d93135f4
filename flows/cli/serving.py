"""Commands for machines that others use: up, deploy."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.launch import runtime_of
from flows.cli.options import RootOption

POOLS = ("cpu", "gpu")
_NVIDIA = Path("/proc/driver/nvidia/gpus")

SlotsOption = Annotated[
    int | None,
    typer.Option(
        "--gpu-slots", min=1, help="Runs that use a device at once, when first registered. [the GPUs of this machine]"
    ),
]


def up(
    root: RootOption = None,
    postgres: Annotated[
        str | None,
        typer.Option("--postgres", metavar="URL", envvar="LLM_FUSE_POSTGRES", help="Records there, not in SQLite."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 4200,
    workers: Annotated[str, typer.Option("--workers", help="Pools that get a worker here; '' for none.")] = "cpu,gpu",
    gpu_slots: SlotsOption = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", metavar="DIR", help="Records and logs of the server. [~/.local/share/llm-fuse/server]"),
    ] = None,
) -> None:
    """Start Prefect's server, deployments and workers on this machine, until Ctrl-C."""
    from flows.serving.server import AUTH_VARIABLE, AlreadyUp, Server, default_home
    from flows.serving.up import serve

    server = Server((home or default_home()).expanduser().absolute(), host, port, postgres)
    place, pools, slots = runtime_of(root).root, _pools_of(workers), gpu_slots or _count_gpus()
    if server.is_exposed and not os.environ.get(AUTH_VARIABLE):
        _say(
            f"warning: whoever reaches {host}:{port} can start runs here; set {AUTH_VARIABLE}=user:password "
            "(and PREFECT_API_AUTH_STRING for clients) to ask for a password"
        )

    def ready() -> None:
        print(f"server   {server.url}\nstore    {place}\nworkers  {', '.join(pools) or 'none'}")
        print(f"logs     {server.home / 'logs'}\n")
        print(f"Open {server.url}/deployments and run `quickstart`. From a terminal:")
        asks = "PREFECT_API_AUTH_STRING=... " if os.environ.get(AUTH_VARIABLE) else ""
        print(f"  PREFECT_API_URL={server.url}/api {asks}llm-fuse run quickstart --root {place}")
        print("Ctrl-C stops all of it.", flush=True)

    try:
        with server.locked_home():
            server.check()
            _say("starting Prefect's server ...")
            serve(server, place, pools, slots, ready, _say)
    except AlreadyUp as other:
        print(f"already up: {other} (home {server.home})")


def deploy(root: RootOption = None, gpu_slots: SlotsOption = None) -> None:
    """Register deployments, pools, limits and automations at the server that PREFECT_API_URL names."""
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        raise ValueError("expected PREFECT_API_URL=http://host:4200/api, found none; `llm-fuse up` starts a server")
    from flows.serving.register import register
    from flows.serving.server import answers

    if not answers(url):
        raise ValueError(f"PREFECT_API_URL: expected a Prefect server at {url}, found none that answers; start it")
    print("\n".join(register(runtime_of(root).root, gpu_slots or _count_gpus())))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pools_of(text: str) -> list[str]:
    pools = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(pools) - set(POOLS)):
        raise ValueError(f"--workers: expected some of {', '.join(POOLS)}, found {', '.join(unknown)}")
    return list(dict.fromkeys(pools))


def _count_gpus() -> int:
    """The NVIDIA devices of this machine, or 1: other kinds come one at a time."""
    return len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() else 1
