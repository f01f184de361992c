"""Settings: every fault named, all at once, and nothing assumed silently."""

from pathlib import Path
from typing import Any

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from elkeid.config import Settings, join_endpoint, load, parse, split_endpoint
from elkeid.errors import ConfigError

BASE = Path("/srv/elkeid")


def faults(raw: dict[str, Any]) -> list[str]:
    """The faults that these settings are refused with."""
    with pytest.raises(ConfigError) as caught:
        parse(raw, BASE)
    assert str(caught.value) == "; ".join(caught.value.faults)
    return caught.value.faults


def test_no_settings_are_enough() -> None:
    """Without any settings everything listens on loopback and lies in the working directory."""
    settings = parse({}, BASE)
    assert settings.server.data_dir == BASE / "data"
    assert settings.server.keys_dir == BASE / "keys"
    for role in ("agentcenter", "discovery", "manager"):
        assert getattr(settings, role).listen == "127.0.0.1"
        assert settings.advertised(role) == "127.0.0.1"
    assert settings.discovery.members == ("127.0.0.1:8088",)
    assert settings.manager.members == ("127.0.0.1:6701",)
    assert parse({name: {} for name in ("server", "eventlog")}, BASE) == settings


@pytest.mark.parametrize("attribute", fields(Settings), ids=lambda a: a.name)
def test_every_default_passes_its_own_check(attribute: Any) -> None:
    """Writing a default into the file changes nothing."""
    section = getattr(Settings(), attribute.name)
    for key in fields(attribute.type):
        value = getattr(section, key.name)
        if isinstance(value, Path):
            value = str(value)
        if value is not None:  # TOML has no null: an unset key is left out
            parse({attribute.name: {key.name: value}}, BASE)


NEVER = "must be a number, 86400 to 315360000, or 0 for never"
TCP_PORT = "must be a whole number, 1 to 65535"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("server.data_dir", 1, "must be a path"),
        ("server.keys_dir", "", "must be a path"),
        ("server.keys_dir", "a\0b", "must be a path"),
        ("server.advertise", "[::1]", "must be an IPv4"),
        ("server.advertise", "0.0.0.0", "must be an IPv4"),
        ("server.advertise", "fe80::1%eth0", "must be an IPv4"),
        ("server.advertise", "ff02::1", "must be an IPv4"),
        ("server.advertise", "a b", "must be an IPv4"),
        ("server.advertise", "-a.example", "must be an IPv4"),
        ("server.advertise", 7, "must be an IPv4"),
        ("server.advertise", "300.1.1.1", "must be an IPv4"),
        ("server.advertise", "a..b", "must be an IPv4"),
        ("server.advertise", "a" * 64, "must be an IPv4"),
        ("server.advertise", "a." * 126 + "ab", "must be an IPv4"),
        ("server.advertise", "a" * 252 + "!", "must be an IPv4"),
        ("server.advertise", "a-" * 126, "must be an IPv4"),
        ("server.log_level", "trace", "must be one of debug, info, warn, error"),
        ("server.log_level", ["info"], "must be one of"),
        ("server.log_format", True, "must be one of text, json"),
        ("server.colour", "red", "unknown setting"),
        ("agentcenter.listen", "localhost", "must be an IPv4 or IPv6 address"),
        ("agentcenter.listen", "127.0.0.1:6751", "must be an IPv4 or IPv6 address"),
        ("agentcenter.listen", 127, "must be an IPv4 or IPv6 address"),
        ("agentcenter.grpc_port", 0, TCP_PORT),
        ("agentcenter.grpc_port", 65536, TCP_PORT),
        ("agentcenter.grpc_port", "6751", TCP_PORT),
        ("agentcenter.grpc_port", 6751.0, TCP_PORT),
        ("agentcenter.grpc_port", True, TCP_PORT),
        ("agentcenter.connection_limit", 0, "must be a whole number, 1 to 1000000"),
        ("agentcenter.empty_agent_id", "drop", "must be one of derive, refuse"),
        ("agentcenter.first_message_seconds", float("nan"), "must be a number, 1 to 3600"),
        ("agentcenter.first_message_seconds", float("inf"), "must be a number, 1 to 3600"),
        ("agentcenter.first_message_seconds", "60", "must be a number, 1 to 3600"),
        ("agentcenter.metrics_networks", "10.0.0.0/8", "must be a list of networks"),
        ("agentcenter.metrics_networks", ["10.0.0.1/8"], "'10.0.0.1/8' is not a network"),
        ("agentcenter.metrics_networks", [8], "8 is not a network"),
        ("discovery.members", [], "must be a non-empty list"),
        ("discovery.members", "a:1", "must be a non-empty list"),
        ("discovery.members", [1], "must be a non-empty list"),
        ("discovery.members", ["a"], "'a' is not host:port"),
        ("discovery.members", ["a:"], "'a:' is not host:port"),
        ("discovery.members", ["a:0"], "'a:0' is not host:port"),
        ("discovery.members", ["a:65536"], "'a:65536' is not host:port"),
        ("discovery.members", ["a:+1"], "'a:+1' is not host:port"),
        ("discovery.members", [":8088"], "':8088' is not host:port"),
        ("discovery.members", ["0.0.0.0:8088"], "'0.0.0.0:8088' is not host:port"),
        ("discovery.members", ["::1:8088"], "'::1:8088': write an IPv6 address as [address]:port"),
        ("manager.tls_port", 0, TCP_PORT),
        ("manager.plain_http", 1, "must be true or false"),
        ("manager.database", "mysql://db/elkeid", 'must be a URL, "sqlite:///PATH"'),
        ("manager.database", "postgresql://db", 'must be a URL, "sqlite:///PATH"'),
        ("manager.database", "sqlite://", 'must be a URL, "sqlite:///PATH"'),
        ("manager.database", "sqlite:///", 'must be a URL, "sqlite:///PATH"'),
        ("manager.database", "sqlite:///:memory:", 'must be a URL, "sqlite:///PATH"'),
        ("manager.silent_host_seconds", 3600, NEVER),
        ("manager.retired_host_seconds", False, NEVER),
        ("eventlog.segment_bytes", 1, "must be a whole number, 1048576 to 4294967296"),
        ("eventlog.telemetry_cap_bytes", 1.5, "must be a whole number"),
        ("eventlog.min_free_bytes", -1, "must be a whole number, 0 to"),
        ("eventlog.readers", "kafka", "must be a list of names"),
        ("eventlog.readers", ["Kafka"], "must be a list of names"),
        ("eventlog.readers", ["../x"], "must be a list of names"),
        ("eventlog.readers", ["a" * 64], "must be a list of names"),
        ("eventlog.readers", [1], "must be a list of names"),
        ("eventlog.readers", ["a\n"], "must be a list of names"),
    ],
)
def test_a_fault_is_named(name: str, value: object, reason: str) -> None:
    """An unusable value is named as section.key, with what would be usable."""
    section, key = name.split(".")
    (fault,) = faults({section: {key: value}})
    assert fault.startswith(f"{name}: {reason}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server.advertise", "192.0.2.1"),
        ("server.advertise", "2001:db8::1"),
        ("server.advertise", "gateway-1.example.com"),
        ("agentcenter.listen", "::1"),
        ("agentcenter.first_message_seconds", 1),
        ("agentcenter.first_message_seconds", 1.5),
        ("agentcenter.metrics_networks", []),
        ("agentcenter.metrics_networks", ["2001:db8::/32", "192.0.2.7/32"]),
        ("discovery.members", ["localhost:1", "[::1]:65535"]),
        ("manager.tls_port", 6702),
        ("manager.silent_host_seconds", 0),
        ("manager.retired_host_seconds", 86400.5),
        ("eventlog.readers", ["kafka", "siem-2_a"]),
    ],
)
def test_good_values(name: str, value: object) -> None:
    """What the manual promises is accepted."""
    section, key = name.split(".")
    got = getattr(getattr(parse({section: {key: value}}, BASE), section), key)
    assert got == (tuple(value) if isinstance(value, list) else value)


def test_all_faults_at_once() -> None:
    """One start shows every fault of every section."""
    assert faults(
        {
            "typo": {},
            "server": {"log_level": "loud", "log_fromat": "json"},
            "agentcenter": [],
            "manager": {"port": 0, "plain_http": "no"},
        }
    ) == [
        "typo: unknown section",
        "server.log_fromat: unknown setting",
        "server.log_level: must be one of debug, info, warn, error",
        "agentcenter: must be a table [agentcenter]",
        "manager.plain_http: must be true or false",
        f"manager.port: {TCP_PORT}",
    ]


def test_contradictions_beside_other_faults() -> None:
    """A bad key hides no contradiction of others, and makes none up."""
    assert faults(
        {
            "server": {"log_level": "loud"},
            "agentcenter": {"http_port": 6751},
            "discovery": {"port": "x"},
            "manager": {"listen": "192.0.2.1"},
        }
    )[2:] == [
        "agentcenter.http_port: 6751 is already agentcenter.grpc_port",
        "manager.tls_port: required when manager.listen is not loopback "
        "(or set manager.plain_http = true to serve passwords unencrypted)",
    ]


def test_loopback_with_remote_members() -> None:
    """A role that registers with another machine must say how it is reached from there."""
    found = faults({"discovery": {"members": ["127.0.0.1:8088", "192.0.2.2:8088"]}})
    assert [fault.split(": ")[0] for fault in found] == [
        "agentcenter.advertise",
        "discovery.advertise",
        "manager.advertise",
    ]
    assert all("192.0.2.2:8088" in fault for fault in found)
    remote = {"members": ["192.0.2.2:8088"]}
    assert faults({"server": {"advertise": "localhost"}, "discovery": remote})
    settings = parse({"server": {"advertise": "192.0.2.1"}, "discovery": remote}, BASE)
    assert settings.advertised("manager") == "192.0.2.1"


def test_advertised_address() -> None:
    """A role's own address wins over the server's, and that over the listening address."""
    raw: dict[str, dict[str, object]] = {
        "server": {"advertise": "192.0.2.1"},
        "agentcenter": {"advertise": "gateway.example"},
    }
    settings = parse(raw, BASE)
    assert settings.advertised("agentcenter") == "gateway.example"
    assert settings.advertised("discovery") == "192.0.2.1"
    assert parse({"agentcenter": {"listen": "::1"}}, BASE).advertised("agentcenter") == "::1"


def test_wildcard_needs_an_address_to_advertise() -> None:
    """Listening everywhere does not say where others can dial."""
    for listen in ("0.0.0.0", "::"):
        (fault,) = faults({"agentcenter": {"listen": listen}})
        assert fault.startswith(f"agentcenter.listen: {listen} needs server.advertise")
        parse({"agentcenter": {"listen": listen, "advertise": "192.0.2.1"}}, BASE)


def test_members_are_by_default_the_own_registry() -> None:
    """A registry on another port or address is found without naming it twice."""
    for listen, port, member in [
        ("127.0.0.1", 9088, "127.0.0.1:9088"),
        ("0.0.0.0", 8088, "127.0.0.1:8088"),
        ("::", 8088, "[::1]:8088"),
        ("192.0.2.1", 8088, "192.0.2.1:8088"),
    ]:
        raw: dict[str, dict[str, object]] = {
            "server": {"advertise": "192.0.2.1"},
            "discovery": {"listen": listen, "port": port},
        }
        assert parse(raw, BASE).discovery.members == (member,)


def test_two_roles_on_one_port() -> None:
    """One port cannot serve two purposes, unless on addresses that do not overlap."""
    assert faults({"manager": {"port": 8088}}) == ["manager.port: 8088 is already discovery.port"]
    assert faults({"agentcenter": {"http_port": 6751}}) == [
        "agentcenter.http_port: 6751 is already agentcenter.grpc_port"
    ]
    assert faults({"manager": {"tls_port": 6701}}) == [
        "manager.tls_port: 6701 is already manager.port"
    ]
    everywhere: dict[str, object] = {"listen": "0.0.0.0", "advertise": "192.0.2.1", "port": 6701}
    assert faults({"discovery": everywhere}) == ["manager.port: 6701 is already discovery.port"]
    parse({"discovery": {"listen": "127.0.0.2", "port": 6701}}, BASE)


def test_passwords_beyond_loopback() -> None:
    """Users beyond loopback log in over TLS, unless plain HTTP is asked for by name."""
    raw: dict[str, object] = {"listen": "192.0.2.1"}
    (fault,) = faults({"manager": raw})
    assert fault.startswith("manager.tls_port: required when manager.listen is not loopback")
    parse({"manager": {**raw, "tls_port": 6702}}, BASE)
    parse({"manager": {**raw, "plain_http": True}}, BASE)


def test_decompressed_messages_are_not_smaller() -> None:
    """A message may not grow less than it may weigh on the wire."""
    (fault,) = faults({"agentcenter": {"decompressed_bytes": 1 << 20}})
    assert fault.startswith("agentcenter.decompressed_bytes: ")


def test_paths_count_from_the_settings_file(tmp_path: Path) -> None:
    """Relative paths mean the same from wherever a command is run; absolute ones stay."""
    etc, here = tmp_path / "etc", tmp_path / "here"
    etc.mkdir()
    here.mkdir()
    (etc / "elkeid.toml").write_text(
        '[server]\ndata_dir = "../data"\nkeys_dir = "/keys"\n'
        '[manager]\ndatabase = "sqlite:///manager.db"\n'
    )
    for path in (etc / "elkeid.toml", Path("../etc/elkeid.toml")):
        settings = load(path, here)
        assert settings.server.data_dir.resolve() == tmp_path / "data"
        assert settings.server.keys_dir == Path("/keys")
        assert settings.manager.database == f"sqlite:///{etc / 'manager.db'}"
    absolute = parse({"manager": {"database": "sqlite:////var/m.db"}}, BASE)
    assert absolute.manager.database == "sqlite:////var/m.db"


def test_file_or_defaults(tmp_path: Path) -> None:
    """elkeid.toml counts where it is; a named file must be there; nothing else is looked for."""
    assert load(None, tmp_path) == parse({}, tmp_path)
    (tmp_path / "elkeid.toml").write_text("[manager]\nport = 7701\n")
    assert load(None, tmp_path).manager.port == 7701
    with pytest.raises(ConfigError, match=r"other\.toml: No such file"):
        load(Path("other.toml"), tmp_path)
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, tmp_path)


@pytest.mark.parametrize("content", [b"[server", b"a = ", b"\xff\xfe", b"[server]\n[server]\n"])
def test_files_that_are_no_toml(tmp_path: Path, content: bytes) -> None:
    """A broken file is named, and where it breaks."""
    path = tmp_path / "elkeid.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(None, tmp_path)
    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}: not ")


_values = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_keys = st.sampled_from(
    [(s.name, k.name) for s in fields(Settings) for k in fields(s.type)]  # type: ignore[arg-type]
)


@given(st.lists(st.tuples(_keys, _values), max_size=4))
def test_any_toml_is_settings_or_faults(chosen: list[tuple[tuple[str, str], object]]) -> None:
    """Whatever stands in the file, the answer is settings or a list of faults."""
    raw: dict[str, dict[str, object]] = {}
    for (section, key), value in chosen:
        raw.setdefault(section, {})[key] = value
    found: list[str] = []
    try:
        parse(raw, BASE)
    except ConfigError as error:
        found = error.faults
    assert all(": " in fault for fault in found)


@given(st.text(max_size=30))
def test_split_endpoint_takes_what_it_writes(text: str) -> None:
    """An endpoint that is accepted is written the same way again, in one form."""
    try:
        host, port = split_endpoint(text)
    except ValueError:
        return
    assert split_endpoint(join_endpoint(host, port)) == (host, port)
