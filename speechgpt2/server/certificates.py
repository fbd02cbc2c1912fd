"""A self-signed certificate, for HTTPS in a local network.

Browsers allow a page the microphone only over HTTPS, or on the same machine. They warn of a self-signed certificate
once. It is kept, so that they do not warn again.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from speechgpt2.errors import UserError
from speechgpt2.extras import require

DAYS = 397  # the longest validity that browsers accept


def self_signed(folder: Path, hosts: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Return a certificate and its key, made on the first call and kept in `folder`.

    Args:
        folder: Folder of the certificate and the key.
        hosts: Names and addresses of the server, besides localhost and those of this machine.

    Raises:
        MissingDependency: cryptography is not installed.
        UserError: The files cannot be written.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not (certificate.is_file() and key.is_file() and _is_valid(certificate)):
        _make(certificate, key, {"localhost", "127.0.0.1", "::1", socket.gethostname(), *_addresses(), *hosts})
    return certificate, key


def check(certificate: str, key: str | None) -> None:
    """Check a certificate and its key before a model is loaded.

    Raises:
        UserError: They cannot be read, or do not belong together.
    """
    for path in filter(None, (certificate, key)):
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_refuse_password)
    except (ssl.SSLError, OSError) as error:
        name = f"{certificate} and {key}" if key else certificate
        raise UserError(f"{name}: no certificate with its key in PEM format ({error})") from None


def _refuse_password() -> str:
    raise UserError("the private key has a password: give one without")


def _addresses() -> set[str]:
    """Return the addresses of this machine in its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the system only chooses the address to send from
        except OSError:
            return set()  # not in a network
        return {probe.getsockname()[0]}


def _is_valid(certificate: Path) -> bool:
    x509 = require("cryptography.x509", "server")
    try:
        expires = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except ValueError:
        return False
    return expires > datetime.datetime.now(datetime.timezone.utc)


def _make(certificate: Path, key: Path, hosts: set[str]) -> None:
    x509 = require("cryptography.x509", "server")
    ec = require("cryptography.hazmat.primitives.asymmetric.ec", "server")
    hashes = require("cryptography.hazmat.primitives.hashes", "server")
    serialization = require("cryptography.hazmat.primitives.serialization", "server")
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "speechgpt2")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([_general_name(x509, host) for host in sorted(hosts)])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        certificate.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secret)
        certificate.write_bytes(signed.public_bytes(pem))
    except OSError as error:
        raise UserError(f"cannot write {certificate.parent}: {error.strerror}") from None


def _general_name(x509: object, host: str) -> object:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))  # type: ignore[attr-defined]
    except ValueError:
        return x509.DNSName(host)  # type: ignore[attr-defined]
