"""The options that commands share."""

from typing import Annotated

import typer

from flows.cli.launch import ROOT_VARIABLE

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, a URL, or the name of a shipped recipe.")
]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--root", metavar="URL", help=f"The store: a folder or s3://bucket/prefix [{ROOT_VARIABLE}, ./.llm-fuse]."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a field: training.lm_weight=0.8.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, mps, cuda, cuda:0, cuda:0,cuda:2 or auto.")]
WorkersOption = Annotated[int | None, typer.Option("--max-workers", min=1, help="Steps in work at once.")]
RuntimeOption = Annotated[
    list[str] | None,
    typer.Option("--runtime", metavar="KEY=VALUE", help="How it is run, never what: training.micro_batch=8."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable lines on stdout.")]
