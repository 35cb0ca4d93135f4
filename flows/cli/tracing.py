"""Commands about where things come from: lineage, pull."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.launch import runtime_of
from flows.cli.options import JsonOption, RootOption
from flows.cli.results import print_json

if TYPE_CHECKING:
    from tasks.artifacts import Ref
    from tasks.library.lineage import Library


def lineage(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF|PATH...",
            help="step/fingerprint, the first digits of a fingerprint, or a path into the store; two with --compare.",
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Why two artifacts aren't the same.")] = False,
    document: Annotated[
        str | None,
        typer.Option("--document", metavar="ID|FILE", help="Which models contain this document: its id, or its text."),
    ] = None,
    export: Annotated[
        Literal["prov", "openlineage"] | None,
        typer.Option("--export", help="W3C PROV as JSON-LD, or OpenLineage events, one per line."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|URL",
            help="Where the export goes; OpenLineage events to an endpoint, too. [stdout]",
        ),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an artifact was made from and what was made from it; compare two; find a document's models; export."""
    from tasks.library.lineage import Library
    from tasks.storage.store import open_store

    asked = list(what or ())
    wanted = {True: 2, False: 1}[compare] if document is None else 0
    if len(asked) != wanted or (document is not None and (compare or export)) or (compare and export):
        raise ValueError(
            f"lineage: expected one REF, two with --compare, or --document alone, found {len(asked)} REFs; see --help"
        )
    library = Library.load(open_store(runtime_of(root)))
    refs = [library.find(text) for text in asked]
    if document is not None:
        _show_document(library, document, as_json)
    elif compare:
        _show_differences(library, refs[0], refs[1], as_json)
    elif export is not None:
        _export(library, refs[0], export, output)
    else:
        _show_lineage(library, refs[0], as_json)


def pull(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Of another root: s3://bucket/prefix/train/3f2a...")],
    with_inputs: Annotated[
        bool, typer.Option("--with-inputs", help="Everything that it was made from too, data and all.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Take a model that brings Python files of its own.")
    ] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an artifact of another root here, checked, with the record of everything it was made from."""
    from flows.cli.tables import show_bytes
    from tasks.library.pulling import pull as pull_artifact

    def report(name: str, size: int) -> None:
        print(f"copied {name}, {show_bytes(size)}", file=sys.stderr)

    done = pull_artifact(uri, runtime_of(root), with_inputs=with_inputs, trust_code=trust_code, report=report)
    if as_json:
        copied, recorded = ([ref.address for ref in refs] for refs in (done.copied, done.recorded))
        print_json({"event": "pulled", "ref": done.ref.address, "copied": copied, "recorded": recorded})
    else:
        print(f"pulled {done.ref}; records of {len(done.recorded)} artifacts it was made from")


def _show_lineage(library: "Library", ref: "Ref", as_json: bool) -> None:
    from flows.cli.tables import print_result
    from flows.cli.trees import lineage_tree

    if not as_json:
        print_result(lineage_tree(library, ref))
        return
    found = {"ancestors": library.ancestors(ref), "descendants": library.descendants(ref)}
    addresses = {name: [each.address for each in refs] for name, refs in found.items()}
    print_json({"ref": ref.address, **addresses, "manifest": library.manifests[ref.address].model_dump(mode="json")})


def _show_document(library: "Library", document: str, as_json: bool) -> None:
    from flows.cli.tables import print_result
    from flows.cli.trees import document_table
    from tasks.corpora.documents import text_id
    from tasks.library.tracing import trace_document

    path = Path(document)
    trace = trace_document(library, text_id(path.read_text(encoding="utf-8")) if path.is_file() else document)
    if as_json:
        refs = {"trained": trace.trained, "inherited": trace.inherited, "read": trace.read}
        shards = [{"address": s.address, "index": s.index, "digest": s.digest} for s in trace.shards]
        addresses = {name: [ref.address for ref in found] for name, found in refs.items()}
        print_json({"shards": shards, **addresses, "unread": list(trace.unread)})
    else:
        print_result(document_table(library, trace))


def _show_differences(library: "Library", left: "Ref", right: "Ref", as_json: bool) -> None:
    from flows.cli.tables import print_result
    from flows.cli.trees import differences_list
    from tasks.library.tracing import compare_artifacts

    found = compare_artifacts(library, left, right)
    if not as_json:
        print_result(differences_list(library, left, right, found))
        return
    listed = [
        {
            "where": d.where,
            "left": d.left,
            "right": d.right,
            "trail": [[argument, one.address, other.address] for argument, one, other in d.trail],
        }
        for d in found
    ]
    print_json({"left": left.address, "right": right.address, "differences": listed})


def _export(library: "Library", ref: "Ref", form: str, output: str | None) -> None:
    from tasks.library.lineage_export import send_events, to_openlineage, to_prov

    manifests = [library.known[r.address] for r in (ref, *library.ancestors(ref)) if r.address in library.known]
    if output is not None and output.startswith(("http://", "https://")):
        if form == "prov":
            raise ValueError(f"--output: expected a file for PROV, found {output}; endpoints take --export openlineage")
        events = to_openlineage(manifests, library.store.root)
        sent = send_events(events, output, os.environ.get("OPENLINEAGE_API_KEY"))
        print(f"sent {sent} events about {len(manifests)} artifacts", file=sys.stderr)
        return
    if form == "prov":
        text = json.dumps(to_prov(manifests), indent=1) + "\n"
    else:
        text = "".join(json.dumps(event) + "\n" for event in to_openlineage(manifests, library.store.root))
    if output is None:
        print(text, end="")
        return
    with Path(output).open("x", encoding="utf-8") as stream:
        stream.write(text)
    print(f"wrote {output}: {len(manifests)} artifacts", file=sys.stderr)
