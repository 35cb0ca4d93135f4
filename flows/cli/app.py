"""The commands of `llm-fuse`. Whatever takes long to import is imported inside them: `--help` has to be quick."""

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from flows.cli import inspecting, looking, publishing, running, serving, tracing
from flows.cli.exits import INTERRUPTED, OK, USAGE, report_error
from flows.cli.launch import quiet_libraries

app = typer.Typer(name="llm-fuse", no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@dataclass
class _Settings:
    verbose: bool = False


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit code: 0 done, 1 failed, 2 for what was asked, 130 interrupted, 70 a bug."""
    settings = _Settings()
    try:
        code = app(args=argv, prog_name="llm-fuse", standalone_mode=False, obj=settings)
    except typer.TyperException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        return report_error(error, verbose=settings.verbose)
    if code == INTERRUPTED:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
    return code if isinstance(code, int) else OK


@app.callback()
def options(
    ctx: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Prefect's log, and tracebacks of errors.")] = False,
) -> None:
    """Knowledge fusion of language models, as Prefect flows."""
    ctx.obj.verbose = verbose
    quiet_libraries(verbose=verbose)


for _command in (
    running.run,
    running.demo,
    looking.plan,
    inspecting.inspect,
    looking.report,
    looking.init,
    running.compare,
    running.evaluate,
    running.refresh,
    publishing.publish,
    tracing.lineage,
    tracing.pull,
    looking.verify,
    looking.gc,
    serving.up,
    serving.deploy,
):
    app.command()(_command)
