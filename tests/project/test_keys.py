"""Keys: made once, kept private, checked at every start, carried to other machines."""

import datetime
import io
import os
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from attrs import evolve
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from elkeid import keys
from elkeid.config import Settings, parse
from elkeid.errors import KeysError
from elkeid.key_making import make_keys
from elkeid.keys import ALL_FILES, Keys, check_keys, create_keys, load_keys, obtain_keys
from elkeid.private_files import write_new_private

NOW = datetime.datetime(2026, 7, 1, tzinfo=datetime.UTC)
YEAR = datetime.timedelta(days=365)
SET = make_keys(["192.0.2.7", "gateway.example", "2001:db8::7"], NOW)
OTHER_SET = make_keys([], NOW)
ALL_ROLES = ("sd", "ac", "manager")
SOME_ROLES = ("ac", "agent", "manager", "sd")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Default settings in an empty folder."""
    return parse({}, tmp_path)


def put(settings: Settings, files: dict[str, bytes]) -> Path:
    """Write key files as they should be; the folder."""
    folder = settings.server.keys_dir
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    return folder


def refusal(call: Callable[[], object]) -> str:
    """The sentence that ``call`` is refused with."""
    with pytest.raises(KeysError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def certificate(name: str) -> x509.Certificate:
    """A certificate of `SET`."""
    return x509.load_pem_x509_certificate(SET[name])


def test_made_with_private_modes(settings: Settings) -> None:
    """A first start makes every file 0600 in a folder 0700, and leaves nothing else."""
    settings.server.keys_dir.mkdir(mode=0o755)
    assert create_keys(settings, NOW)
    folder = settings.server.keys_dir
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys([*ALL_FILES, ".lock"], 0o600)


def test_never_made_anew(settings: Settings) -> None:
    """Keys that are there stay as they are."""
    create_keys(settings, NOW)
    before = {name: (settings.server.keys_dir / name).read_bytes() for name in ALL_FILES}
    assert not create_keys(settings, NOW)
    obtain_keys(settings, ALL_ROLES, NOW)
    assert before == {n: (settings.server.keys_dir / n).read_bytes() for n in ALL_FILES}


def test_crash_while_making_keys(settings: Settings) -> None:
    """A crash between any two steps leaves no keys or all; the next start has one whole set."""
    folder = put(settings, {})
    left = folder / ".new-1"  # died before the set was whole
    left.mkdir()
    (left / "ca.key").write_bytes(b"half")
    create_keys(settings, NOW)
    whole = {name: (folder / name).read_bytes() for name in ALL_FILES}
    assert sorted(p.name for p in folder.iterdir()) == sorted([*ALL_FILES, ".lock"])

    staged = folder / ".staged"  # died while the whole set moved to its place
    staged.mkdir()
    for name, content in whole.items():
        (staged / name).write_bytes(content)
        (staged / name).chmod(0o600)
    for name in ALL_FILES[3:]:
        (folder / name).unlink()
    assert obtain_keys(settings, ALL_ROLES, NOW) == load_keys(settings, ALL_ROLES, NOW)
    assert whole == {name: (folder / name).read_bytes() for name in ALL_FILES}
    assert sorted(p.name for p in folder.iterdir()) == sorted([*ALL_FILES, ".lock"])


def test_part_of_a_set_is_not_completed(settings: Settings) -> None:
    """With some files gone, no new ones are made beside the rest: that would fit nothing."""
    folder = put(settings, {n: SET[n] for n in ALL_FILES if n != "server.key"})
    text = refusal(lambda: obtain_keys(settings, ALL_ROLES, NOW))
    assert f"{folder / 'server.key'} is missing" in text
    assert not (folder / "server.key").exists()


def test_existing_keys_may_be_read_only(settings: Settings) -> None:
    """Keys mounted from elsewhere need no right to write."""
    folder = put(settings, SET)
    folder.chmod(0o500)
    assert obtain_keys(settings, ALL_ROLES, NOW).keys_dir == folder
    assert sorted(p.name for p in folder.iterdir()) == sorted(ALL_FILES)


def test_folder_that_others_can_change(settings: Settings) -> None:
    """Private files in a folder where others can replace them are not private."""
    folder = put(settings, SET)
    folder.chmod(0o777)
    assert refusal(lambda: obtain_keys(settings, ALL_ROLES, NOW)) == (
        f"{folder} can be changed by others; run `chmod go-w {folder}`"
    )


@pytest.mark.parametrize(
    ("roles", "changes", "allowed"),
    [
        (ALL_ROLES, {}, True),
        (ALL_ROLES, {"members": ["192.0.2.9:8088"], "listen": "0.0.0.0"}, True),
        (("ac",), {}, True),
        (("sd", "ac"), {}, True),
        (("ac",), {"members": ["192.0.2.9:8088"]}, False),
        (("ac",), {"members": ["127.0.0.1:8088", "192.0.2.9:8088"]}, False),
        (("ac",), {"listen": "0.0.0.0"}, False),
        (("sd",), {"listen": "0.0.0.0"}, True),  # the gateway's address is not sd's
        (("agent",), {"members": ["192.0.2.9:8088"]}, False),
    ],
)
def test_who_may_make_keys(
    settings: Settings, roles: tuple[str, ...], changes: dict[str, object], allowed: bool
) -> None:
    """Only a process with every role, or one that only this machine reaches, makes keys."""
    raw: dict[str, dict[str, object]] = {"server": {"advertise": "192.0.2.1"}}
    if "members" in changes:
        raw["discovery"] = {"members": changes["members"]}
    if "listen" in changes:
        raw["agentcenter"] = {"listen": changes["listen"]}
    mine = parse(raw, settings.server.keys_dir.parent)
    if allowed:
        obtain_keys(mine, roles, NOW)
        assert (mine.server.keys_dir / "ca.key").is_file()
    else:
        text = refusal(lambda: obtain_keys(mine, roles, NOW))
        assert f"elkeid keys export {roles[0]}" in text
        assert "elkeid keys import" in text
        assert not mine.server.keys_dir.exists()


def test_each_role_needs_its_own_files_only(settings: Settings) -> None:
    """A role loads without what it does not need, and knows nothing of it."""
    put(settings, {"secrets.toml": SET["secrets.toml"]})
    loaded = load_keys(settings, ["sd"], NOW)
    assert loaded.signing_pair[0].startswith("elkeid-")
    assert loaded.ca_cert == loaded.server_key == loaded.client_key == b""
    put(settings, {name: SET[name] for name in ("ca.crt", "client.crt", "client.key")})
    loaded = load_keys(settings, ["agent"], NOW)
    assert (loaded.client_cert, loaded.server_cert) == (SET["client.crt"], b"")
    assert "ca.key" not in {name for role in SOME_ROLES for name in keys.ROLE_FILES[role]}


def test_authority() -> None:
    """The authority is an X.509 v3 one that strict checkers accept; its key is in PKCS#1."""
    authority = certificate("ca.crt")
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert authority.version is x509.Version.v3
    assert (constraints.critical, constraints.value.ca) == (True, True)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
    assert not usage.value.digital_signature
    authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert SET["ca.key"].startswith(b"-----BEGIN RSA PRIVATE KEY-----")
    key = load_pem_private_key(SET["ca.key"], None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 2048


def test_leaves() -> None:
    """Server and client differ in purpose; the server names every address it is dialled by."""
    names = {"server.crt": ExtendedKeyUsageOID.SERVER_AUTH}
    names["client.crt"] = ExtendedKeyUsageOID.CLIENT_AUTH
    for name, purpose in names.items():
        leaf = certificate(name)
        public = leaf.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert isinstance(public.curve, ec.SECP256R1)
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(purposes) == [purpose]
        leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        leaf.verify_directly_issued_by(certificate("ca.crt"))
    found = certificate("server.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    dns = found.value.get_values_for_type(x509.DNSName)
    addresses = [str(a) for a in found.value.get_values_for_type(x509.IPAddress)]
    assert dns == ["elkeid.com", "localhost", "gateway.example"]
    assert addresses == ["127.0.0.1", "192.0.2.7", "2001:db8::7"]


def test_validity() -> None:
    """What agents carry outlives them; a host whose clock lags by hours accepts it today."""
    for name, years in [("ca.crt", 100), ("client.crt", 100), ("server.crt", 10)]:
        leaf = certificate(name)
        assert leaf.not_valid_before_utc == NOW - datetime.timedelta(days=1)
        assert leaf.not_valid_after_utc == NOW + years * YEAR
    expiry = check_keys(Path("k"), SET, NOW).expiry
    assert expiry["server.crt"] == NOW + 10 * YEAR
    assert set(expiry) == {"ca.crt", "client.crt", "server.crt"}


def test_two_sets_share_no_secret() -> None:
    """Every deployment has its own keys and secrets."""
    assert not set(SET.values()) & set(OTHER_SET.values())


def test_nothing_secret_is_shown() -> None:
    """Keys can be printed or logged without giving anything away."""
    loaded = check_keys(Path("k"), SET, NOW)
    shown = repr(loaded) + str(loaded)
    assert "PRIVATE" not in shown
    assert loaded.signing_pair[1] not in shown
    assert loaded.signing_pair[0] not in shown


def _secrets(text: str) -> dict[str, bytes]:
    return {"secrets.toml": text.encode()}


LONG = "s" * 16


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"server.crt": OTHER_SET["server.crt"]}, "server.key does not belong to"),
        ({"server.key": OTHER_SET["server.key"]}, "server.key does not belong to"),
        ({"client.key": OTHER_SET["client.key"]}, "client.key does not belong to"),
        ({"ca.key": OTHER_SET["ca.key"]}, "ca.key does not belong to"),
        ({"ca.crt": OTHER_SET["ca.crt"]}, "server.crt is not signed by"),
        (
            {"client.crt": OTHER_SET["client.crt"], "client.key": OTHER_SET["client.key"]},
            "client.crt is not signed by",
        ),
        (
            {"server.crt": SET["client.crt"], "server.key": SET["client.key"]},
            "server.crt is not made for a server",
        ),
        (
            {"client.crt": SET["server.crt"], "client.key": SET["server.key"]},
            "client.crt is not made for a client",
        ),
        ({"ca.crt": b"nothing"}, "holds no certificate"),
        ({"server.crt": b""}, "holds no certificate"),
        ({"server.key": b"-----BEGIN EC PRIVATE KEY-----\n"}, "holds no private key"),
        (_secrets("[aksk"), "is not TOML"),
        ({"secrets.toml": b"\xff"}, "is not TOML"),
        (_secrets(""), "needs a table [aksk]"),
        (_secrets("[aksk]"), "needs a table [aksk]"),
        (_secrets("aksk = 1"), "needs a table [aksk]"),
        (_secrets(f'[aksk]\nshort = "{LONG}"'), "access key 1 must be"),
        (_secrets(f'[aksk]\nUpper-case = "{LONG}"'), "access key 1 must be"),
        (_secrets('[aksk]\ngood-name = "short"'), "secret of good-name must be"),
        (_secrets(f'[aksk]\ngood-name = "{LONG} "'), "secret of good-name must be"),
        (_secrets("[aksk]\ngood-name = 1234567890123456"), "secret of good-name must be"),
        (_secrets(f'[aksk]\ngood-name = "{"s" * 129}"'), "secret of good-name must be"),
    ],
)
def test_faults_are_named(files: dict[str, bytes], fault: str) -> None:
    """Files that do not fit one another are refused at start, with what to do."""
    text = refusal(lambda: check_keys(Path("k"), {**SET, **files}, NOW))
    assert fault in text
    assert LONG not in text


def test_expired_or_not_valid_yet() -> None:
    """A certificate out of its time is named with its date."""
    text = refusal(lambda: check_keys(Path("k"), SET, NOW + 11 * YEAR))
    assert "k/server.crt expired on 2036-06-28" in text
    text = refusal(lambda: check_keys(Path("k"), SET, NOW - YEAR))
    assert "is valid from 2026-06-30" in text
    without_server = {n: c for n, c in SET.items() if not n.startswith("server")}
    assert check_keys(Path("k"), without_server, NOW + 11 * YEAR)


def test_several_authorities() -> None:
    """While one authority replaces another both may stand in ca.crt, even an ended one."""
    both = {**SET, "ca.crt": OTHER_SET["ca.crt"] + SET["ca.crt"]}
    assert check_keys(Path("k"), both, NOW).ca_cert == both["ca.crt"]


def test_published_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates and secrets that the world knows are refused, whatever else fits."""
    digest = certificate("client.crt").fingerprint(hashes.SHA256()).hex()
    monkeypatch.setattr(keys, "_PUBLISHED_CERTIFICATES", {digest})
    assert "private key is published" in refusal(lambda: check_keys(Path("k"), SET, NOW))
    monkeypatch.setattr(keys, "_PUBLISHED_SECRETS", {sha256(LONG.encode()).hexdigest()})
    sample = _secrets(f'[aksk]\nsample-name = "{LONG}"')
    assert "published sample" in refusal(lambda: check_keys(Path("k"), sample, NOW))


def test_lists_of_published_keys() -> None:
    """The lists hold lower-case SHA-256 digests, as they are compared with."""
    for digest in keys._PUBLISHED_CERTIFICATES | keys._PUBLISHED_SECRETS:
        assert bytes.fromhex(digest).hex() == digest
        assert len(digest) == 64


def test_keys_that_others_can_read(settings: Settings) -> None:
    """A private file that others can use is refused with the command that mends it."""
    folder = put(settings, SET)
    (folder / "ca.crt").chmod(0o644)  # public anyway
    load_keys(settings, ALL_ROLES, NOW)
    for name in ("server.key", "secrets.toml"):
        for mode in (0o640, 0o604, 0o620):
            (folder / name).chmod(mode)
            text = refusal(lambda: load_keys(settings, ALL_ROLES, NOW))
            assert f"run `chmod 600 {folder / name}`" in text
        (folder / name).chmod(0o600)


def test_unreadable_and_oversized(settings: Settings) -> None:
    """A folder in a file's place, or an endless file, is a sentence."""
    folder = put(settings, SET)
    (folder / "ca.crt").unlink()
    (folder / "ca.crt").mkdir()
    assert "cannot be read" in refusal(lambda: load_keys(settings, ALL_ROLES, NOW))
    (folder / "ca.crt").rmdir()
    put(settings, {"ca.crt": b"x" * (keys.FILE_BYTES + 1)})
    assert "is longer than" in refusal(lambda: load_keys(settings, ALL_ROLES, NOW))


def test_folder_that_cannot_be_made(settings: Settings) -> None:
    """A keys_dir below a file is a sentence that names the setting."""
    (settings.server.keys_dir.parent / "keys").write_text("")
    assert "server.keys_dir" in refusal(lambda: obtain_keys(settings, ALL_ROLES, NOW))


def test_write_new_private(tmp_path: Path) -> None:
    """A private file is never written over another and leaves no trace when it fails."""
    os.umask(os.umask(0o022))
    write_new_private(tmp_path / "a", b"one")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_new_private(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- export and import ----------------------------------------------------------------------


def elsewhere(settings: Settings) -> Settings:
    """Settings of another machine."""
    there = settings.server.keys_dir.parent / "there"
    return evolve(settings, server=evolve(settings.server, keys_dir=there / "keys"))


def archive_of(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """A tar archive with these entries."""
    with tarfile.open(path, "w") as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("role", SOME_ROLES)
def test_export_and_import(settings: Settings, tmp_path: Path, role: str) -> None:
    """What a role needs, and nothing more, arrives on its machine."""
    put(settings, SET)
    there = elsewhere(settings)
    there.server.keys_dir.parent.mkdir()
    packed = tmp_path / "keys.tar"
    packed.write_bytes(keys.export_archive(settings, role, NOW))
    new = keys.import_archive(there, packed, NOW)
    folder = there.server.keys_dir
    assert new == list(keys.ROLE_FILES[role])
    assert sorted(p.name for p in folder.iterdir()) == sorted(new)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    here, arrived = (load_keys(s, [role], NOW) for s in (settings, there))
    assert evolve(arrived, keys_dir=here.keys_dir) == here
    assert keys.import_archive(there, packed, NOW) == []  # again: nothing to do


def test_import_of_a_second_role(settings: Settings, tmp_path: Path) -> None:
    """A machine that runs two roles takes both archives."""
    put(settings, SET)
    there = elsewhere(settings)
    there.server.keys_dir.parent.mkdir()
    for role in ("sd", "ac"):
        packed = tmp_path / f"{role}.tar"
        packed.write_bytes(keys.export_archive(settings, role, NOW))
        keys.import_archive(there, packed, NOW)
    assert load_keys(there, ["sd", "ac"], NOW)


def test_import_replaces_nothing(settings: Settings, tmp_path: Path) -> None:
    """Keys of another deployment are refused whole; what is there stays."""
    put(settings, SET)
    there = elsewhere(settings)
    there.server.keys_dir.parent.mkdir()
    folder = put(there, {"secrets.toml": OTHER_SET["secrets.toml"]})
    packed = tmp_path / "ac.tar"
    packed.write_bytes(keys.export_archive(settings, "ac", NOW))
    text = refusal(lambda: keys.import_archive(there, packed, NOW))
    assert "secrets.toml is there and differs" in text
    assert [path.name for path in folder.iterdir()] == ["secrets.toml"]


def test_import_that_does_not_fit(settings: Settings, tmp_path: Path) -> None:
    """An archive whose files contradict what is there is refused whole."""
    folder = put(settings, {n: OTHER_SET[n] for n in ("ca.crt", "secrets.toml")})
    entries = [(tarfile.TarInfo(n), SET[n]) for n in ("server.crt", "server.key")]
    text = refusal(
        lambda: keys.import_archive(settings, archive_of(tmp_path / "a.tar", entries), NOW)
    )
    assert "server.crt is not signed by" in text
    assert sorted(path.name for path in folder.iterdir()) == ["ca.crt", "secrets.toml"]


def _linked(kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("ca.crt")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        tarfile.TarInfo("../ca.crt"),
        tarfile.TarInfo("/tmp/ca.crt"),
        tarfile.TarInfo("keys/ca.crt"),
        tarfile.TarInfo("admin-password"),
        tarfile.TarInfo(".staged"),
        _linked(tarfile.SYMTYPE),
        _linked(tarfile.LNKTYPE),
        _linked(tarfile.DIRTYPE),
        _linked(tarfile.FIFOTYPE),
    ],
)
def test_hostile_archives(settings: Settings, tmp_path: Path, entry: tarfile.TarInfo) -> None:
    """An archive can name nothing but our key files: no path, no link, no other name."""
    content = SET["ca.crt"] if entry.isreg() else b""
    packed = archive_of(tmp_path / "a.tar", [(entry, content)])
    text = refusal(lambda: keys.import_archive(settings, packed, NOW))
    assert "does not write" in text
    assert not settings.server.keys_dir.exists()


def test_archives_that_are_none(settings: Settings, tmp_path: Path) -> None:
    """A missing, empty, foreign, doubled or endless archive is a sentence."""
    path = tmp_path / "a.tar"
    assert "cannot be read" in refusal(lambda: keys.import_archive(settings, path, NOW))
    path.write_bytes(b"not a tar at all" * 100)
    assert "is no archive" in refusal(lambda: keys.import_archive(settings, path, NOW))
    path.write_bytes(keys.export_archive(_complete(settings), "ac", NOW)[:1000])
    assert refusal(lambda: keys.import_archive(settings, path, NOW))
    archive_of(path, [])
    assert "is empty" in refusal(lambda: keys.import_archive(settings, path, NOW))
    twice = [(tarfile.TarInfo("ca.crt"), SET["ca.crt"])] * 2
    archive_of(path, twice)
    assert "does not write" in refusal(lambda: keys.import_archive(settings, path, NOW))
    archive_of(path, [(tarfile.TarInfo("ca.crt"), b"x" * (keys.FILE_BYTES + 1))])
    assert "is longer than" in refusal(lambda: keys.import_archive(settings, path, NOW))
    with path.open("r+b") as file:
        file.truncate(keys.ARCHIVE_BYTES + 1)
    assert "is too long" in refusal(lambda: keys.import_archive(settings, path, NOW))


def _complete(settings: Settings) -> Settings:
    put(settings, SET)
    return settings


def test_export_of_faulty_keys(settings: Settings) -> None:
    """Keys that would be refused at start are refused before they travel."""
    put(settings, {**SET, "server.key": OTHER_SET["server.key"]})
    assert "does not belong" in refusal(lambda: keys.export_archive(settings, "ac", NOW))


def test_signing_pair_is_the_first() -> None:
    """Of several access keys the first signs, so that another can be brought in before."""
    text = f'[aksk]\nnew-name = "{LONG}1"\nold-name = "{LONG}2"'
    loaded: Keys = check_keys(Path("k"), _secrets(text), NOW)
    assert loaded.signing_pair == ("new-name", LONG + "1")
    assert list(loaded.aksk) == ["new-name", "old-name"]


def test_renewed_server(settings: Settings) -> None:
    """A new certificate and key for the names of the old one, signed by the same authority."""
    folder = put(settings, SET)
    names = keys.renew_server(settings, NOW + YEAR)
    for name in ("192.0.2.7", "gateway.example", "2001:db8::7", "elkeid.com", "localhost"):
        assert name in names
    loaded = load_keys(settings, ALL_ROLES, NOW + YEAR)
    assert loaded.server_cert != SET["server.crt"]
    assert loaded.server_key != SET["server.key"]
    assert loaded.expiry["server.crt"] > NOW + 10 * YEAR
    kept = [name for name in ALL_FILES if not name.startswith("server.")]
    assert {name: (folder / name).read_bytes() for name in kept} == {n: SET[n] for n in kept}
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys([*ALL_FILES, ".lock"], 0o600)


def test_renewed_though_the_old_one_is_lost_or_expired(settings: Settings) -> None:
    """What is broken or over can be mended so; names then come from the settings."""
    folder = put(settings, SET | {"server.crt": b"broken"})
    (folder / "server.key").unlink()
    assert keys.renew_server(settings, NOW + 20 * YEAR) == ["elkeid.com"]
    assert load_keys(settings, ALL_ROLES, NOW + 20 * YEAR)


def test_renewal_among_two_authorities(settings: Settings) -> None:
    """The authority whose key is here signs, wherever it stands in ca.crt."""
    put(settings, SET | {"ca.crt": OTHER_SET["ca.crt"] + SET["ca.crt"]})
    keys.renew_server(settings, NOW)
    put(settings, {"ca.crt": SET["ca.crt"]})
    assert load_keys(settings, ALL_ROLES, NOW)


def test_renewal_needs_the_authority(settings: Settings) -> None:
    """On a machine without its key nothing is changed, and the way is told."""
    folder = put(settings, {name: SET[name] for name in ALL_FILES if name != "ca.key"})
    assert "keys import --renew" in refusal(lambda: keys.renew_server(settings, NOW))
    put(settings, {"ca.key": OTHER_SET["ca.key"]})
    assert "does not belong to" in refusal(lambda: keys.renew_server(settings, NOW))
    assert (folder / "server.crt").read_bytes() == SET["server.crt"]


def test_import_of_renewed_keys(settings: Settings, tmp_path: Path) -> None:
    """Only on demand, only the server's pair, and no authority is taken away."""
    there = elsewhere(settings)
    packed = tmp_path / "ac.tar"
    put(settings, SET)
    packed.write_bytes(keys.export_archive(settings, "ac", NOW))
    keys.import_archive(there, packed, NOW)
    keys.renew_server(settings, NOW)
    put(settings, {"ca.crt": SET["ca.crt"] + OTHER_SET["ca.crt"]})
    packed.write_bytes(keys.export_archive(settings, "ac", NOW))
    assert "differs" in refusal(lambda: keys.import_archive(there, packed, NOW))
    new = keys.import_archive(there, packed, NOW, renew=True)
    assert sorted(new) == ["ca.crt", "server.crt", "server.key"]
    assert load_keys(there, ["ac"], NOW) == evolve(
        load_keys(settings, ["ac"], NOW), keys_dir=there.server.keys_dir
    )
    put(settings, {"ca.crt": SET["ca.crt"]})
    packed.write_bytes(keys.export_archive(settings, "ac", NOW))
    assert "ca.crt is there and differs" in refusal(
        lambda: keys.import_archive(there, packed, NOW, renew=True)
    )
    put(settings, OTHER_SET)
    packed.write_bytes(keys.export_archive(settings, "ac", NOW))
    assert "differs" in refusal(lambda: keys.import_archive(there, packed, NOW, renew=True))


def test_registry_over_tls_needs_a_certificate(tmp_path: Path) -> None:
    """A registry with a TLS port needs the server's certificate, and says where to get it."""
    raw = {"discovery": {"tls_port": 8443}, "server": {"keys_dir": "keys"}}
    settings = parse(raw, base=tmp_path)
    keys.create_keys(settings)
    assert keys.load_keys(settings, {"sd"}).server_cert
    (tmp_path / "keys" / "server.crt").unlink()
    with pytest.raises(KeysError, match="elkeid keys export sd-tls"):
        keys.load_keys(settings, {"sd"})
