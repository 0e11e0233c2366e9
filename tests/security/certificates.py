"""Certificates made for one test: an authority, and what it has signed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.availability import missing


class Authority:
    """A certificate authority in a folder of its own. Keys are on P-256, valid for two days."""

    def __init__(self, directory: Path, name: str = "test") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.certificate, self._key = directory / "ca.crt", directory / "ca.key"
        self._openssl = shutil.which("openssl") or missing("openssl", "apt-get install openssl")
        self._new_key(self._key)
        subject = ("-subj", f"/CN={name} authority")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._run("req", "-x509", "-new", "-key", self._key, "-days", "2", *subject, *usage, "-out", self.certificate)

    def sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of ``name``, good for 127.0.0.1, localhost and as a client."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        self._new_key(key)
        self._run("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        signed_by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        self._run("x509", "-req", "-in", request, *signed_by, "-days", "2", "-extfile", extensions, "-out", certificate)
        return certificate, key

    def _new_key(self, path: Path) -> None:
        self._run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)

    def _run(self, *args: str | Path) -> None:
        subprocess.run([self._openssl, *map(str, args)], check=True, capture_output=True, timeout=30)
