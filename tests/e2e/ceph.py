"""Ceph on one machine: a monitor, one disk of a sparse file, and the gateway that speaks S3."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.processes import Service, call, free_port, is_listening, running
from tests.e2e.servers import KEY, SECRET, S3Server

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon initial members = a
mon host = {address}
public network = 127.0.0.0/8
keyring = {folder}/keyring
run dir = {folder}/run
log file = {folder}/log/$name.log
admin socket = {folder}/run/$name.asok
mon data = {folder}/mon
osd data = {folder}/osd
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class update on start = false
osd memory target = 939524096
mon allow pool size one = true
mon osd min in ratio = 0
mon pg warn min per osd = 0
mon data avail crit = 1
bluestore block size = 8589934592
bluestore block db create = false
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {folder}/rgw
"""


def is_installed() -> bool:
    """Whether all of its programs are there."""
    return all(map(shutil.which, PROGRAMS))


@contextlib.contextmanager
def radosgw(folder: Path) -> Iterator[S3Server]:
    """The gateway, which knows one user, and its daemons: mon.a, osd.0 and rgw."""
    for name in ("mon", "osd", "rgw", "run", "log"):
        (folder / name).mkdir(parents=True)
    fsid, port = str(uuid.uuid4()), free_port()
    address = f"[v2:127.0.0.1:{free_port()},v1:127.0.0.1:{free_port()}]"
    conf = folder / "ceph.conf"
    conf.write_text(_CONFIGURATION.format(fsid=fsid, address=address, folder=folder, port=port))
    _make_monitor(conf, folder, fsid, address)
    services: dict[str, Service] = {}
    with contextlib.ExitStack() as daemons:

        def start(name: str, where: int | Path, *words: str) -> None:
            command, log = (*words, "-c", str(conf), "-f"), folder / "log" / f"{name}.out"
            services[name] = daemons.enter_context(running(command, log, lambda: is_listening(where)))

        start("mon.a", folder / "run" / "mon.a.asok", "ceph-mon", "-i", "a")
        disk = str(uuid.uuid4())
        call("ceph", "-c", conf, "--connect-timeout", "30", "osd", "new", disk)
        call("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", disk, "--keyring", folder / "keyring")
        start("osd.0", folder / "run" / "osd.0.asok", "ceph-osd", "-i", "0")
        who = ("--uid", "fusion", "--display-name", "fusion")
        call("radosgw-admin", "-c", conf, "user", "create", *who, "--access-key", KEY, "--secret", SECRET)
        start("rgw", port, "radosgw", "-n", "client.rgw")
        yield S3Server(f"http://127.0.0.1:{port}", services)


def _make_monitor(conf: Path, folder: Path, fsid: str, address: str) -> None:
    everything = [word for service in ("mon", "osd", "mgr") for word in ("--cap", service, "allow *")]
    first, keyring = folder / "mon.keyring", folder / "keyring"
    call("ceph-authtool", "--create-keyring", first, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    call("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "client.admin", *everything)
    for name in ("osd.0", "client.rgw"):
        call("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)
    call("ceph-authtool", first, "--import-keyring", keyring)
    call("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, folder / "monmap")
    call("ceph-mon", "-c", conf, "-i", "a", "--mkfs", "--monmap", folder / "monmap", "--keyring", first)
