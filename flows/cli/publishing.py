"""The command that lets a model out: publish."""

from typing import Annotated

import typer

from flows.cli.launch import runtime_of
from flows.cli.options import JsonOption, RootOption
from flows.cli.results import print_json


def publish(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|RECIPE", help="A model of the store (train/3f2a...), or a recipe that was run."),
    ],
    to: Annotated[str, typer.Argument(metavar="TO", help="A folder, s3://bucket/prefix, or hf://owner/name[@branch].")],
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="NAME", help="Overrides an objection by its name: gate, licence:MODEL."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Of a hub repository that is made now; else it is private.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another model that is there.")] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a model with its card, recipe and lineage; refused if its smoke gate failed or licences conflict."""
    from flows.cli.tables import show_bytes
    from flows.publish import publish_model
    from tasks.publishing.destinations import parse_destination

    destination = parse_destination(to, public=public)
    done = publish_model.fn(model, destination, tuple(allow or ()), replace, runtime=runtime_of(root))
    if as_json:
        print_json({"event": "published", **done.model_dump(mode="json")})
        return
    overridden = f", in spite of {', '.join(done.allowed)}" if done.allowed else ""
    print(f"published {done.model} to {done.place}: {done.files} files, {show_bytes(done.bytes)}{overridden}")
