"""Keys on disk: what each role needs of ``keys_dir``, and who may make it.

    ca.crt                     trusted by agents and by every role
    ca.key                     signs certificates; stays where it was made
    server.crt, server.key     shown to agents and to clients of the APIs
    client.crt, client.key     built into every agent
    secrets.toml               table ``[aksk]``: access keys and secrets of the inner APIs

Everything is checked when it is loaded, so that a fault is one sentence at start and not a
handshake that fails at night. Losing this folder means reinstalling every agent.
"""

import datetime
import fcntl
import io
import os
import re
import shutil
import stat
import tarfile
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from attrs import field, frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from elkeid.config import Settings, is_loopback, split_endpoint
from elkeid.errors import KeysError
from elkeid.key_making import AGENTS_NAME, make_keys, make_server
from elkeid.private_files import (
    OTHERS,
    make_private_folder,
    replace_private,
    sync_folder,
    write_new_private,
    write_synced,
)

ROLE_SECTIONS = {"sd": "discovery", "ac": "agentcenter", "manager": "manager"}
ROLE_FILES: dict[str, tuple[str, ...]] = {
    "ac": ("ca.crt", "server.crt", "server.key", "secrets.toml"),
    "sd": ("secrets.toml",),
    "sd-tls": ("server.crt", "server.key", "secrets.toml"),  # with discovery.tls_port
    "manager": ("ca.crt", "server.crt", "server.key", "secrets.toml"),
    "agent": ("ca.crt", "client.crt", "client.key"),  # to build agents with, or to simulate them
}
ALL_FILES = (
    "ca.crt",
    "ca.key",
    "server.crt",
    "server.key",
    "client.crt",
    "client.key",
    "secrets.toml",
)
FILE_BYTES = 1 << 20  # of one key file; a longer one is no key and is not read
ARCHIVE_BYTES = 16 << 20  # of an archive to import: every file at its limit, and headers

_AK = re.compile(r"[0-9a-z_-]{8,64}\Z")
_SK = re.compile(r"[A-Za-z0-9_-]{16,128}\Z")

# Private keys and secrets published with the upstream sources: anybody has them.
_PUBLISHED_CERTIFICATES = {  # SHA-256 of the DER
    "d439e71b9916b9ce48192c967c359a468c0b5a55928a02d46ce753cb0575c372",
    "3e9688e46b7b2d4ad89a25f1c52ae7d45343935fec56e9fadfe4a3b909c3dabf",
    "af732332791bbe66bbb06be0e2462dfbd4a395301c2c4187cc661a5ce84d2e5b",
}
_PUBLISHED_SECRETS = {  # SHA-256 of the SK
    "3969b5618daa5f5a5a681e67ad74a450ad0432a5be8a525a1e3a9f34b20aba17",
    "69dc1484ae377426dae966f37989356980f74c3ba224625dad36d41da465daae",
    "0dfc80abec33edc8d817197ff350ad44ad767930201a21889459be8acf60824a",
    "aaf30eea17536c5d30bf35a8a2c2480855f7c6fac6051f8beeb910b73eb077ce",
    "6987c8335815555a8d4e7af276cc46a5f8a47a9b6c553d401b539e9f8b76447b",
    "40055a2863a20aaf09f258474b19d5b6e123ae046790896a7bf3a853de4900e2",
}
_STAGED = ".staged"  # a complete new set on its way to its place


@frozen(kw_only=True)
class Keys:
    """Checked keys; what the chosen roles do not need may be empty.

    The PEM fields hold the files as they are: ``ca_cert`` may hold several authorities,
    ``server_cert`` and ``client_cert`` intermediates after the leaf.
    """

    keys_dir: Path
    ca_cert: bytes = field(default=b"", repr=False)
    server_cert: bytes = field(default=b"", repr=False)
    server_key: bytes = field(default=b"", repr=False)
    client_cert: bytes = field(default=b"", repr=False)
    client_key: bytes = field(default=b"", repr=False)
    aksk: dict[str, str] = field(factory=dict, repr=False)  # in the file's order
    expiry: dict[str, datetime.datetime] = field(factory=dict)  # file name -> end of validity, UTC

    @property
    def signing_pair(self) -> tuple[str, str]:
        """The AK and SK that our own requests are signed with: the file's first."""
        return next(iter(self.aksk.items()))


def load_keys(
    settings: Settings, roles: Collection[str], now: datetime.datetime | None = None
) -> Keys:
    """Read and check what ``roles`` (names of `ROLE_FILES`) need.

    Args:
        settings: for ``server.keys_dir``.
        roles: which roles run; ``agent`` for the simulator.
        now: an aware time to judge validity by; the current one by default.

    Raises:
        KeysError: one sentence that names the file and the fix.
    """
    folder = settings.server.keys_dir
    if "sd" in roles and settings.discovery.tls_port is not None:
        roles = {*roles, "sd-tls"}
    files = {}
    for name in needed_files(roles):
        content = _read_private(folder / name)
        if content is None:
            role = next(role for role in sorted(roles) if name in ROLE_FILES[role])
            raise KeysError(
                f"{folder / name} is missing: where the keys were made run "
                f"`elkeid keys export {role}`, then here `elkeid keys import FILE`"
            )
        files[name] = content
    return check_keys(folder, files, now)


def obtain_keys(
    settings: Settings, roles: Collection[str], now: datetime.datetime | None = None
) -> Keys:
    """Load the keys of a process that runs ``roles``, making them first where that is safe.

    Two processes that each made their own keys could not talk to one another, and agents built
    with one set could not reach the other. So only a process that runs every role, or one that
    only this machine can reach, makes keys, and only where there are none at all.

    Raises:
        KeysError: as `load_keys`, or the folder cannot be written.
    """
    folder = settings.server.keys_dir
    begun = (folder / _STAGED).exists() or not any((folder / n).exists() for n in ALL_FILES)
    if begun and may_make_keys(settings, roles):  # an existing folder may be read-only
        create_keys(settings, now)
    return load_keys(settings, roles, now)


def may_make_keys(settings: Settings, roles: Collection[str]) -> bool:
    """Say whether a process with these settings and roles may make keys on its own."""
    if set(roles) >= set(ROLE_SECTIONS):
        return True
    if not set(roles) <= set(ROLE_SECTIONS):
        return False  # a simulated agent joins a deployment, it does not found one
    hosts = [split_endpoint(member)[0] for member in settings.discovery.members]
    hosts += [getattr(settings, ROLE_SECTIONS[role]).listen for role in roles]
    return all(is_loopback(host) for host in hosts)


def create_keys(settings: Settings, now: datetime.datetime | None = None) -> bool:
    """Make a complete set of keys, unless any file of one is there; say whether they were made.

    A set that a crash left on its way is completed. Two processes may call this at once.

    Raises:
        KeysError: the folder cannot be written.
    """
    folder = settings.server.keys_dir
    make_private_folder(folder)
    try:
        with _locked(folder):
            staged = folder / _STAGED
            if not staged.exists():
                present = [name for name in ALL_FILES if (folder / name).exists()]
                if present:
                    return False
                _stage(folder, make_keys(_server_names(settings), now or _now()))
            for name in ALL_FILES:
                if not (folder / name).exists():
                    os.link(staged / name, folder / name)
            sync_folder(folder)
            shutil.rmtree(staged)
    except OSError as error:
        raise KeysError(
            f"{folder}: keys cannot be written: {error.strerror}; "
            "mend the folder or choose another server.keys_dir"
        ) from error
    return True


def renew_server(settings: Settings, now: datetime.datetime | None = None) -> list[str]:
    """Replace ``server.crt`` and ``server.key`` by new ones that the same agents trust.

    Returns:
        Names and addresses in the new certificate: those of the old one, if it can be read, and
        those of the settings.

    Raises:
        KeysError: ``ca.crt`` or ``ca.key`` is not here or at fault, or the folder cannot be
            written.
    """
    folder = settings.server.keys_dir
    now = now or _now()
    files = {name: _read_private(folder / name) for name in ("ca.crt", "ca.key")}
    ca_pem, key_pem = files["ca.crt"], files["ca.key"]
    if ca_pem is None or key_pem is None:
        raise KeysError(
            f"{folder} lacks ca.crt or ca.key, which sign certificates; renew where the keys were "
            "made, then take them here with `elkeid keys export` and `elkeid keys import --renew`"
        )
    check_keys(folder, {"ca.crt": ca_pem, "ca.key": key_pem}, now)
    ca_key = load_pem_private_key(key_pem, None)
    if not isinstance(ca_key, rsa.RSAPrivateKey):
        raise KeysError(f"{folder / 'ca.key'} is no RSA key, as this command needs it")
    public = ca_key.public_key()
    ca = next(c for c in x509.load_pem_x509_certificates(ca_pem) if c.public_key() == public)
    names = list(dict.fromkeys([*_names_in(folder / "server.crt"), *_server_names(settings)]))
    made = make_server(ca, ca_key, names, now)
    _replace(folder, made)
    return [AGENTS_NAME, *(name for name in names if name != AGENTS_NAME)]


def _names_in(path: Path) -> list[str]:
    """The names of a certificate; none if there is no readable one."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        with _locked(folder):
            for name, content in files.items():
                replace_private(folder / name, content)
    except OSError as error:
        raise KeysError(
            f"{folder}: keys cannot be written: {error.strerror}; mend the folder and try again"
        ) from error


def needed_files(roles: Iterable[str]) -> list[str]:
    """The files that these roles need, in a fixed order."""
    wanted = {name for role in roles for name in ROLE_FILES[role]}
    return [name for name in ALL_FILES if name in wanted]


def _server_names(settings: Settings) -> list[str]:
    roles = [settings.advertised(section) for section in ROLE_SECTIONS.values()]
    own = [settings.server.advertise] if settings.server.advertise else []
    return [*own, *(name for name in roles if not is_loopback(name))]


def _stage(folder: Path, files: Mapping[str, bytes]) -> None:
    for left in folder.glob(".new-*"):  # of a crash before the set was complete
        shutil.rmtree(left)
    new = folder / f".new-{os.getpid()}"
    new.mkdir(mode=0o700)
    for name, content in files.items():
        write_synced(new / name, content)
    sync_folder(new)
    new.rename(folder / _STAGED)
    sync_folder(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _read_private(path: Path) -> bytes | None:
    try:
        with path.open("rb") as source:
            mode = os.fstat(source.fileno()).st_mode
            content = source.read(FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeysError(f"{path} cannot be read: {error.strerror}; mend its owner or rights") from (
            error
        )
    if mode & OTHERS and not path.name.endswith(".crt"):
        raise KeysError(f"{path} can be used by others; run `chmod 600 {path}`")
    if path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeysError(f"{path.parent} can be changed by others; run `chmod go-w {path.parent}`")
    if len(content) > FILE_BYTES:
        raise KeysError(f"{path} is longer than {FILE_BYTES} bytes; put the right file there")
    return content


# --- what is in the files -------------------------------------------------------------------


def check_keys(
    folder: Path, files: Mapping[str, bytes], now: datetime.datetime | None = None
) -> Keys:
    """Check files of ``keys_dir`` alone and against one another.

    Args:
        folder: where they are or will be, for error sentences.
        files: name -> content; any part of a set.
        now: an aware time to judge validity by; the current one by default.

    Raises:
        KeysError: the first fault found, with its fix.
    """
    now = now or _now()
    chains = {
        name: _certificates(folder / name, content, now)
        for name, content in files.items()
        if name.endswith(".crt")
    }
    for leaf in ("server", "client"):
        _check_leaf(folder, leaf, chains, files)
    if "ca.key" in files and "ca.crt" in chains:
        _check_match(folder / "ca.key", files["ca.key"], chains["ca.crt"])
    return Keys(
        keys_dir=folder,
        ca_cert=files.get("ca.crt", b""),
        server_cert=files.get("server.crt", b""),
        server_key=files.get("server.key", b""),
        client_cert=files.get("client.crt", b""),
        client_key=files.get("client.key", b""),
        aksk=_aksk(folder / "secrets.toml", files["secrets.toml"])
        if "secrets.toml" in files
        else {},
        expiry={
            name: min(certificate.not_valid_after_utc for certificate in chain)
            for name, chain in chains.items()
        },
    )


def _certificates(path: Path, pem: bytes, now: datetime.datetime) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise KeysError(f"{path} holds no certificate in PEM; restore it from a backup") from error
    for certificate in chain:
        if sha256(certificate.public_bytes(Encoding.DER)).hexdigest() in _PUBLISHED_CERTIFICATES:
            raise KeysError(
                f"{path} is a sample certificate whose private key is published: anybody could "
                "pose as this server or its agents; make own keys with `elkeid keys init`"
            )
        if certificate.not_valid_before_utc > now:
            raise KeysError(
                f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; "
                "set this machine's clock right or put a certificate there that is valid now"
            )
        # Of several authorities some may have served their time.
        if certificate.not_valid_after_utc < now and (len(chain) == 1 or path.name != "ca.crt"):
            raise KeysError(
                f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; "
                "put a renewed certificate there"
            )
    return chain


def _check_leaf(
    folder: Path,
    name: str,
    chains: Mapping[str, list[x509.Certificate]],
    files: Mapping[str, bytes],
) -> None:
    file, key = f"{name}.crt", f"{name}.key"
    chain = chains.get(file)
    if chain is None:
        return
    if key in files:
        _check_match(folder / key, files[key], chain[:1])
    if "ca.crt" in chains and not _leads_to(chain, chains["ca.crt"]):
        raise KeysError(
            f"{folder / file} is not signed by {folder / 'ca.crt'}; "
            "put files of one set there, as `elkeid keys import` does"
        )
    purpose = (
        ExtendedKeyUsageOID.SERVER_AUTH if name == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    )
    try:
        purposes = chain[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if purpose not in purposes:
            raise KeysError(f"{folder / file} is not made for a {name}; put the right file there")
    except x509.ExtensionNotFound:
        pass  # good for every purpose
    if name == "server" and not _names_the_agents_server(chain[0]):
        raise KeysError(
            f"{folder / file} lacks the DNS name {AGENTS_NAME}, which agents demand; "
            "put a certificate with it there"
        )


def _names_the_agents_server(certificate: x509.Certificate) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return AGENTS_NAME in names.get_values_for_type(x509.DNSName)


def _check_match(path: Path, pem: bytes, certificates: list[x509.Certificate]) -> None:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise KeysError(
            f"{path} holds no private key in PEM without a password; restore it from a backup"
        ) from error

    def spki(public: object) -> bytes:
        return public.public_bytes(  # type: ignore[attr-defined, no-any-return]
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )

    if spki(key.public_key()) not in [spki(each.public_key()) for each in certificates]:
        raise KeysError(
            f"{path} does not belong to {path.with_suffix('.crt')}; put files of one set there"
        )


def _leads_to(chain: list[x509.Certificate], authorities: list[x509.Certificate]) -> bool:
    """Say whether the chain's leaf, over its intermediates, was issued by an authority."""
    certificate, others = chain[0], chain[1:]
    while True:
        if any(_issued(certificate, authority) for authority in authorities):
            return True
        issuer = next((each for each in others if _issued(certificate, each)), None)
        if issuer is None:
            return False
        others.remove(issuer)
        certificate = issuer


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _aksk(path: Path, content: bytes) -> dict[str, str]:
    try:
        raw = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        # The parser's own words could repeat a secret.
        raise KeysError(f"{path} is not TOML; restore it from a backup") from None
    pairs = raw.get("aksk")
    if not isinstance(pairs, dict) or not pairs:
        raise KeysError(f'{path} needs a table [aksk] with at least one line AK = "SK"')
    for number, (ak, sk) in enumerate(pairs.items(), 1):
        if not _AK.match(ak):
            raise KeysError(
                f"{path}: access key {number} must be 8 to 64 of a-z, 0-9, _ and -; rename it"
            )
        if not isinstance(sk, str) or not _SK.match(sk):
            raise KeysError(
                f"{path}: the secret of {ak} must be a string of 16 to 128 of A-Z, a-z, 0-9, _ "
                "and -; choose another"
            )
        if sha256(sk.encode()).hexdigest() in _PUBLISHED_SECRETS:
            raise KeysError(
                f"{path}: the secret of {ak} is a published sample that anybody knows; "
                "choose another"
            )
    return pairs


# --- taking keys to other machines ----------------------------------------------------------


def export_archive(settings: Settings, role: str, now: datetime.datetime | None = None) -> bytes:
    """Pack what ``role`` needs into a tar archive; ``ca.key`` never leaves its machine.

    Raises:
        KeysError: a file is missing or at fault.
    """
    load_keys(settings, [role], now)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ROLE_FILES[role]:
            content = (settings.server.keys_dir / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def import_archive(
    settings: Settings,
    archive: Path,
    now: datetime.datetime | None = None,
    *,
    renew: bool = False,
) -> list[str]:
    """Put the keys of an archive into ``keys_dir``; nothing that differs is replaced.

    Args:
        settings: for ``server.keys_dir``.
        archive: an export of ours.
        now: an aware time to judge validity by; the current one by default.
        renew: replace the server's certificate and key all the same, and ``ca.crt`` by one that
            holds all authorities of the present one.

    Returns:
        The names of the files that are new or renewed.

    Raises:
        KeysError: the archive is no export of ours, does not fit what is there, or would replace
            something; nothing was written.
    """
    folder = settings.server.keys_dir
    incoming = _read_archive(archive)
    present = {name: _read_private(folder / name) for name in ALL_FILES}
    kept = {name: content for name, content in present.items() if content is not None}
    renewed = {}
    for name, content in incoming.items():
        if kept.get(name, content) == content:
            continue
        if not renew or not _may_renew(name, kept[name], content):
            raise KeysError(
                f"{folder / name} is there and differs from the one in {archive}: "
                "move it away first if it is no longer needed, nothing was changed"
            )
        renewed[name] = content
    check_keys(folder, {**kept, **incoming}, now)
    make_private_folder(folder)
    new = [name for name in incoming if name not in kept]
    try:
        for name in new:
            write_new_private(folder / name, incoming[name])
    except OSError as error:
        raise KeysError(
            f"{folder}: keys cannot be written: {error.strerror}; mend the folder and import again"
        ) from error
    if renewed:
        _replace(folder, renewed)
    return [*new, *renewed]


def _may_renew(name: str, old: bytes, new: bytes) -> bool:
    """Whether a file may be replaced without cutting off an agent or a server."""
    if name in ("server.crt", "server.key"):
        return True
    if name != "ca.crt":
        return False
    try:
        added = set(x509.load_pem_x509_certificates(new))
        return added.issuperset(x509.load_pem_x509_certificates(old))
    except ValueError:
        return False


def _read_archive(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        if path.stat().st_size > ARCHIVE_BYTES:
            raise KeysError(f"{path} is too long for an export of `elkeid keys export`")
        with tarfile.open(path, mode="r:") as archive:
            for entry in archive:
                # Nothing is unpacked by its own name: only names of ours, as plain files.
                if entry.name not in ALL_FILES or entry.name in files or not entry.isreg():
                    raise KeysError(
                        f"{path} holds {entry.name!r}, which `elkeid keys export` does not write; "
                        "nothing was changed"
                    )
                if entry.size > FILE_BYTES:
                    raise KeysError(f"{path}: {entry.name} is longer than {FILE_BYTES} bytes")
                source = archive.extractfile(entry)
                assert source is not None
                files[entry.name] = source.read()
    except OSError as error:
        raise KeysError(f"{path} cannot be read: {error.strerror or error}; check the path") from (
            error
        )
    except tarfile.TarError as error:
        raise KeysError(f"{path} is no archive of `elkeid keys export`") from error
    if not files:
        raise KeysError(f"{path} is empty; run `elkeid keys export ROLE` again")
    return files
