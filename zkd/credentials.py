"""Secrets on the way from their files to a connection, to ZooKeeper or between nodes, and nowhere else.

A setting names a file, as a path or as ``credential:NAME``: what systemd's LoadCredential= put into
$CREDENTIALS_DIRECTORY. Files are read when a session is made, so a renewed one counts from the next start.
Messages name the setting and the file and never show what is in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from zkd.errors import BadSettings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from zkd.settings import Tls, ZooKeeper


def credential_path(key: str, value: str, env: Mapping[str, str] = os.environ) -> Path:
    """The file that the setting `key` names with `value`."""
    kind, colon, name = value.partition(":")
    if not (colon and kind == "credential"):
        return Path(value).expanduser()
    directory = env.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise BadSettings(
            f"{key}: {value} needs $CREDENTIALS_DIRECTORY; "
            f"under systemd add LoadCredential={name}:/path, else give a path"
        )
    if not name or "/" in name or name.startswith("."):
        raise BadSettings(f"{key}: expected credential:NAME with a plain name, got {value!r}")
    return Path(directory) / name


def read_auth(zookeeper: ZooKeeper, env: Mapping[str, str] = os.environ) -> list[tuple[str, bytes]]:
    """The (scheme, credentials) pairs in `auth_file`: one ``scheme:user:password`` a line, # begins a comment line."""
    if zookeeper.auth_file is None:
        return []
    path = credential_path("zookeeper.auth_file", zookeeper.auth_file, env)
    try:
        lines = path.read_bytes().decode().splitlines()
    except OSError as error:
        raise BadSettings(f"zookeeper.auth_file: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadSettings(f"zookeeper.auth_file: {path} is not UTF-8 text") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        scheme, _, credentials = line.strip().partition(":")
        if not scheme or ":" not in credentials:
            raise BadSettings(f"zookeeper.auth_file: {path}:{number}: expected scheme:user:password")
        pairs.append((scheme, credentials.encode()))
    if not pairs:
        raise BadSettings(f"zookeeper.auth_file: {path}: expected a line scheme:user:password, got none")
    return pairs


def tls_context(
    tls: Tls | None, env: Mapping[str, str] = os.environ, *, section: str = "zookeeper.tls"
) -> ssl.SSLContext | None:
    """What this section asks for, to connect with, or None where connections are plain."""
    if tls is None:
        return None
    import ssl  # 3 MB that plain connections need not carry

    ca, cert, key = _files(tls, section, env)
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise _no_authority(section, ca, error) from None
    context.check_hostname = tls.verify_hostname  # the chain is verified in any case
    if cert is not None:
        _load(context, section, cert, key)
    return context


def serving_context(
    tls: Tls | None, env: Mapping[str, str] = os.environ, *, section: str = "node.tls"
) -> ssl.SSLContext | None:
    """What this section asks for, to be connected to: with a `ca`, by those only who show a certificate of it."""
    if tls is None:
        return None
    import ssl

    ca, cert, key = _files(tls, section, env)
    if cert is None:
        raise BadSettings(f"{section}.cert: expected the file of the certificate that this node shows")
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise _no_authority(section, ca, error) from None
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    _load(context, section, cert, key)
    return context


def _files(tls: Tls, section: str, env: Mapping[str, str]) -> tuple[Path | None, Path | None, Path | None]:
    def named(key: str, value: str | None) -> Path | None:
        return None if value is None else credential_path(f"{section}.{key}", value, env)

    ca, cert, key = named("ca", tls.ca), named("cert", tls.cert), named("key", tls.key)
    if key is not None and cert is None:
        raise BadSettings(f"{section}.key: expected `cert` beside it")
    return ca, cert, key


def _no_authority(section: str, ca: Path | None, error: OSError) -> BadSettings:
    return BadSettings(f"{section}.ca: {ca}: expected a PEM file of certificates: {error}")


def _load(context: ssl.SSLContext, section: str, cert: Path, key: Path | None) -> None:
    import ssl

    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise BadSettings(
            f"{section}.cert: {cert}{f' with {key}' if key else ''}: expected PEM files of a certificate and "
            f"its key, without a passphrase: {error}"
        ) from None
