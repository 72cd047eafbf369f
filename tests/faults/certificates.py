"""A certificate authority for one test run: PEM files for Python, PKCS12 stores for the JVM."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PKCS12Certificate,
    serialize_java_truststore,
    serialize_key_and_certificates,
)

from zkd.zk.apache import Tls

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "password"


class Authority:
    """Signs certificates for 127.0.0.1; all files lie in `directory`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self.directory = directory
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self._key.public_key(), is_authority=True)
        (directory / f"{name}.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def server_stores(self) -> Tls:
        key, certificate = self._issue("server")
        encryption = BestAvailableEncryption(PASSWORD.encode())
        keystore = self.directory / "keystore.p12"
        keystore.write_bytes(
            serialize_key_and_certificates(b"server", key, certificate, [self.certificate], encryption)
        )
        truststore = self.directory / "truststore.p12"
        trusted = [PKCS12Certificate(self.certificate, b"authority")]
        truststore.write_bytes(serialize_java_truststore(trusted, encryption))
        return Tls(keystore, truststore, PASSWORD)

    def client_context(self, user: str, *, trusts: Authority | None = None) -> ssl.SSLContext:
        """What a client shows (a certificate for `user`) and trusts (this authority, or another one)."""
        key, certificate = self._issue(user)
        path = self.directory / f"{user}.pem"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
        authority = trusts or self
        context = ssl.create_default_context(cafile=str(authority.directory / f"{authority.name}.pem"))
        context.load_cert_chain(str(path))
        return context

    def _issue(self, name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        return key, self._sign(name, key.public_key(), is_authority=False)

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
