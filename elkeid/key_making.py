"""Making keys: a certificate authority, a server and a client certificate, an AK/SK pair.

Agents carry ``ca.crt``, ``client.crt`` and ``client.key`` built in, so these live for a hundred
years: their end would cut off every agent at once. The server's certificate lives ten years; it
can be made anew from ``ca.key`` without touching an agent.
"""

import datetime
import ipaddress
import secrets
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AGENTS_NAME = "elkeid.com"  # the DNS name that agents demand of every server, whatever they dial
EMBEDDED_YEARS = 100
SERVER_YEARS = 10
BACKDATED = datetime.timedelta(days=1)  # hosts' clocks lag; a certificate of today must pass there
_YEAR = datetime.timedelta(days=365)

_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def make_keys(names: Iterable[str], now: datetime.datetime) -> dict[str, bytes]:
    """Make a complete set of keys.

    Args:
        names: addresses and DNS names that the server is dialled by, beside `AGENTS_NAME`,
            ``localhost`` and ``127.0.0.1``, which are always in its certificate.
        now: an aware time; validity counts from a day before.

    Returns:
        File name -> content, as keys_dir holds them.
    """
    # PKCS#1 and RSA for the authority: other Managers read ca.key in that form only.
    ca_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    client_key = ec.generate_private_key(ec.SECP256R1())
    ca = _authority(ca_key, now)
    client = _leaf(
        "elkeid agent",
        client_key,
        ca,
        ca_key,
        now=now,
        years=EMBEDDED_YEARS,
        purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
        names=(AGENTS_NAME,),
    )
    return {
        "ca.crt": ca.public_bytes(Encoding.PEM),
        "ca.key": _private_pem(ca_key),
        **make_server(ca, ca_key, names, now),
        "client.crt": client.public_bytes(Encoding.PEM),
        "client.key": _private_pem(client_key),
        "secrets.toml": make_secrets(),
    }


def make_server(
    ca: x509.Certificate, ca_key: rsa.RSAPrivateKey, names: Iterable[str], now: datetime.datetime
) -> dict[str, bytes]:
    """Make a new server certificate, with a new key, that agents of this authority trust.

    Args:
        ca: the authority.
        ca_key: its key.
        names: as in `make_keys`.
        now: as in `make_keys`.

    Returns:
        ``server.crt`` and ``server.key``.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    server = _leaf(
        "elkeid server",
        key,
        ca,
        ca_key,
        now=now,
        years=SERVER_YEARS,
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        names=(AGENTS_NAME, "localhost", "127.0.0.1", *names),
    )
    return {"server.crt": server.public_bytes(Encoding.PEM), "server.key": _private_pem(key)}


def make_secrets() -> bytes:
    """Make a secrets file with one access key and a secret of 256 random bits."""
    return (
        "# Access keys (AK) and their secrets (SK). Every process of a deployment needs the same.\n"
        "# The first pair signs requests; all of them are accepted.\n"
        "[aksk]\n"
        f'elkeid-{secrets.token_hex(8)} = "{secrets.token_urlsafe(32)}"\n'
    ).encode()


def _private_pem(key: _Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "elkeid"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: rsa.RSAPrivateKey, now: datetime.datetime) -> x509.Certificate:
    # A serial in the name keeps two authorities apart in logs and trust stores.
    name = _subject(f"elkeid CA {secrets.token_hex(4)}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + EMBEDDED_YEARS * _YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )


def _leaf(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: rsa.RSAPrivateKey,
    *,
    now: datetime.datetime,
    years: int,
    purpose: x509.ObjectIdentifier,
    names: Iterable[str],
) -> x509.Certificate:
    try:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
    except x509.ExtensionNotFound:  # an authority of version 1, as upstream's scripts make it
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(common_name))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + years * _YEAR, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    found: dict[x509.GeneralName, None] = {}  # a set that keeps the order
    for name in names:
        try:
            found[x509.IPAddress(ipaddress.ip_address(name))] = None
        except ValueError:
            found[x509.DNSName(name)] = None
    return list(found)
