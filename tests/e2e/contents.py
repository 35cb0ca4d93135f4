"""What a store holds, for comparing two of them."""

from tasks.artifacts import Runtime
from tasks.library.lineage import Library
from tasks.storage.store import open_store


def contents(runtime: Runtime) -> dict[str, dict[str, str]]:
    """The digest of every data file, by artifact; fingerprints are part of the addresses."""
    library = Library.load(open_store(runtime))
    return {
        address: {fact.path.partition("/")[2]: fact.sha256 for fact in manifest.files.values()}
        for address, manifest in library.manifests.items()
    }
