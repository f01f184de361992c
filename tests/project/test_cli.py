"""The elkeid command: helpful, quick to start, and plain about mistakes."""

import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from elkeid.cli import COMMANDS, LazyGroup, main
from elkeid.config import load
from elkeid.keys import ALL_FILES


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv: str) -> Result:
    """Run ``elkeid`` with these arguments."""
    return CliRunner().invoke(main, list(argv))


def every_command(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands and groups below ``group`` with their paths."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


def test_every_command_has_help_with_an_example() -> None:
    """--help of each command says what it does and shows a line to copy."""
    assert isinstance(main, LazyGroup)
    for path, command in [((), main), *every_command(main)]:
        result = run(*path, "--help")
        assert result.exit_code == 0, path
        assert "Example" in result.output, path
        assert f"elkeid {' '.join(path)}".strip() in result.output.split("Example")[1], path
        assert command.help
        assert command.help[0].isupper(), path


def test_help_lines_are_those_of_the_commands() -> None:
    """The list of commands says of each what it says of itself."""
    context = click.Context(main)
    assert isinstance(main, LazyGroup)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert COMMANDS[name][1] == command.get_short_help_str(200)


def test_help_loads_nothing_heavy() -> None:
    """``elkeid --help`` is quick: no reactor, no TLS, no database is loaded for it."""
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from elkeid.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).exit_code)\n"
        "heavy = ('twisted', 'cryptography', 'OpenSSL', 'sqlalchemy', 'treq', 'elkeid.tap')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["0", "[]"]


def test_unknown_command() -> None:
    """A mistyped command is named, with status 2 as of every wrong usage."""
    result = run("kyes")
    assert result.exit_code == 2
    assert "No such command 'kyes'" in result.output


def test_keys_life(here: Path) -> None:
    """Make keys, export a role's, import them elsewhere: each step says what it did."""
    result = run("keys", "init")
    assert result.exit_code == 0
    assert f"Made new keys in {here / 'keys'}" in result.output
    assert "losing them means reinstalling every agent" in result.output
    assert "PRIVATE" not in result.output

    result = run("keys", "init")
    assert result.exit_code == 0
    assert "nothing was changed" in result.output

    result = run("keys", "export", "ac", "--out", "ac.tar")
    assert result.exit_code == 0
    assert (here / "ac.tar").stat().st_mode & 0o777 == 0o600
    with tarfile.open(here / "ac.tar") as archive:
        assert archive.getnames() == ["ca.crt", "server.crt", "server.key", "secrets.toml"]

    result = run("keys", "export", "ac", "--out", "ac.tar")
    assert result.exit_code == 1
    assert "ac.tar is there already" in result.output

    (here / "other.toml").write_text('[server]\nkeys_dir = "other"\n')
    result = run("--config", "other.toml", "keys", "import", "ac.tar")
    assert result.exit_code == 0
    assert "Put ca.crt, server.crt, server.key, secrets.toml into" in result.output
    assert sorted(p.name for p in (here / "other").iterdir()) == sorted(
        ["ca.crt", "server.crt", "server.key", "secrets.toml"]
    )
    result = run("--config", "other.toml", "keys", "import", "ac.tar")
    assert "nothing was changed" in result.output


def test_export_by_default_beside_you(here: Path) -> None:
    """Without --out the archive is named after the role; any role but a wrong one."""
    run("keys", "init")
    assert run("keys", "export", "agent").exit_code == 0
    assert (here / "elkeid-keys-agent.tar").is_file()
    assert run("keys", "export", "analysis").exit_code == 2


def test_mistakes_are_one_sentence(here: Path) -> None:
    """What an operator can mend is told in one sentence, with status 1 and no traceback."""
    for argv in (
        ["keys", "export", "sd"],
        ["keys", "import", "none.tar"],
        ["--config", "none.toml", "keys", "init"],
    ):
        result = run(*argv)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert len(result.output.splitlines()) == 1
    assert list(here.iterdir()) == []


def test_faults_in_the_settings_one_a_line(here: Path) -> None:
    """All faults in the settings are shown, as at the server's start."""
    (here / "elkeid.toml").write_text("[manager]\nport = 0\nprot = 1\n")
    result = run("keys", "init")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "Error: manager.port: must be a whole number, 1 to 65535",
        "manager.prot: unknown setting",
    ]


def test_part_of_a_set(here: Path) -> None:
    """``keys init`` does not mend a folder that lost some of its files."""
    run("keys", "init")
    (here / "keys" / "server.key").unlink()
    result = run("keys", "init")
    assert result.exit_code == 1
    assert "without server.key" in result.output


@pytest.mark.parametrize("address", ["192.0.2.10", "2001:db8::10", "elkeid.example", "127.0.0.1"])
def test_init(here: Path, address: str) -> None:
    """One step leaves settings and keys that a server for a network starts with."""
    result = run("init", "--advertise", address)
    assert result.exit_code == 0, result.output
    settings = load(None, here)
    for role in ("agentcenter", "discovery", "manager"):
        assert settings.advertised(role) == address
    assert settings.manager.tls_port == 6702
    assert not settings.manager.plain_http
    assert all((here / "keys" / name).is_file() for name in ALL_FILES)
    assert f"Wrote {here / 'elkeid.toml'}" in result.output
    assert "losing them means reinstalling every agent" in result.output
    assert "twistd -n elkeid" in result.output
    assert address in result.output


def test_init_overwrites_nothing(here: Path) -> None:
    """Settings that are there stay; keys that are there are kept and said so."""
    run("keys", "init")
    before = (here / "keys" / "ca.crt").read_bytes()
    result = run("init", "--advertise", "192.0.2.10")
    assert result.exit_code == 0
    assert f"Kept the keys in {here / 'keys'}" in result.output
    assert (here / "keys" / "ca.crt").read_bytes() == before
    written = (here / "elkeid.toml").read_text()
    result = run("init", "--advertise", "192.0.2.11")
    assert result.exit_code == 1
    assert "is there already" in result.output
    assert (here / "elkeid.toml").read_text() == written


def test_init_where_told(here: Path) -> None:
    """--config names the file to write, even while it is not there."""
    (here / "etc").mkdir()
    assert run("--config", "etc/my.toml", "init", "--advertise", "192.0.2.10").exit_code == 0
    assert (here / "etc" / "my.toml").is_file()
    assert (here / "etc" / "keys" / "ca.crt").is_file()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "[::1]", "a b", "https://x", "a:6751", ""])
def test_init_with_an_address_nobody_can_dial(here: Path, address: str) -> None:
    """An address that others cannot dial is refused before anything is written."""
    result = run("init", "--advertise", address)
    assert result.exit_code == 1
    assert "--advertise: must be" in result.output
    assert list(here.iterdir()) == []


def test_version() -> None:
    """--version says which package answers."""
    assert run("--version").output.startswith("elkeid ")


def test_call_says_what_is_wrong() -> None:
    """Without keys, without a gateway, or with a wrong address there is one sentence."""
    missing = run("call", "GET", "/conn/list")
    assert (missing.exit_code, missing.output.count("\n")) == (1, 1)
    assert "is missing" in missing.output
    assert run("keys", "init").exit_code == 0
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        away = run("call", "GET", "/x", "--gateway", f"127.0.0.1:{nobody.getsockname()[1]}")
    assert (away.exit_code, away.output.count("\n")) == (1, 1)
    assert "does the gateway run there" in away.output
    assert "is not host:port" in run("call", "GET", "/x", "--gateway", "here").output
    assert "begins with /" in run("call", "GET", "x").output
