"""A team's machines as processes of this one, and a browser; where a program is absent, the test says so and skips."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import ceph, servers

BUCKET = "fusion"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that other users may enter (Postgres doesn't run as root), with names short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="llm-fuse-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def postgres_url(place: Path) -> Iterator[str]:
    programs = servers.find_postgres()
    if programs is None:
        pytest.skip("no Postgres on this machine: `make e2e` as root installs it on Debian, or apt install postgresql")
    with servers.postgres(programs, place / "postgres") as url:
        yield url


@dataclass(frozen=True)
class Bucket:
    """A bucket as this process reaches it, and the line by which the others do."""

    root: str
    environment: dict[str, str]
    line: servers.Line


@pytest.fixture(scope="module")
def bucket(place: Path) -> Iterator[Bucket]:
    """An empty bucket of Ceph's gateway where it is installed, else of ministack."""
    with (
        ceph.radosgw(place / "ceph") if ceph.is_installed() else servers.ministack(place / "s3") as server,
        servers.line_to(server.url) as line,
        pytest.MonkeyPatch.context() as patch,
    ):
        keys = {"AWS_ACCESS_KEY_ID": servers.KEY, "AWS_SECRET_ACCESS_KEY": servers.SECRET}
        environment = {**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": line.url}
        for name, value in {**environment, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(name, value)
        from s3fs import S3FileSystem

        from tasks.storage.store import Store

        S3FileSystem.clear_instance_cache()  # or it would speak to the server of the module before

        root = f"s3://{BUCKET}/store"
        Store(root).fs.mkdir(BUCKET)
        yield Bucket(root, environment, line)
