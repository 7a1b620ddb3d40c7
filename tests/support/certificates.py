"""A private certificate authority, its server certificate, and a stranger's authority."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EXTENSIONS: Final = """\
subjectAltName = DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
MAY_SIGN: Final = ("-addext", "keyUsage = critical,keyCertSign,cRLSign")
"""Asked of an authority by Python 3.13."""
KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """Files in PEM; the server's name is `localhost`."""

    folder: Path

    @property
    def authority(self) -> Path:
        """Who signed the server's certificate."""
        return self.folder / "authority.pem"

    @property
    def stranger(self) -> Path:
        """Another authority, who signed nothing."""
        return self.folder / "stranger.pem"

    @property
    def server(self) -> Path:
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.folder / "server.key"


def make_certificates(folder: Path) -> Certificates:
    """Make them with the openssl program, for two days."""
    made = Certificates(folder)
    for path in (made.authority, made.stranger):
        _openssl(
            *("req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={path.stem}"),
            *MAY_SIGN,
            *("-keyout", path.with_suffix(".key"), "-out", path),
        )
    request, extensions = folder / "server.csr", folder / "extensions"
    extensions.write_text(EXTENSIONS)
    _openssl(
        *("req", "-new", *KEY, "-subj", "/CN=localhost"),
        *("-keyout", made.server_key, "-out", request),
    )
    _openssl(
        *("x509", "-req", "-in", request, "-days", "2", "-set_serial", "1"),
        *("-CA", made.authority, "-CAkey", made.authority.with_suffix(".key")),
        *("-extfile", extensions, "-out", made.server),
    )
    return made


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
