"""What a person at a terminal needs to know once the server is ready."""

import shlex
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from elkeid.config import Settings

ADMIN = "admin"
ADMIN_PASSWORD_FILE = "admin-password"  # noqa: S105 -- a file's name


def addresses(settings: Settings, roles: Collection[str]) -> list[tuple[str, str]]:
    """What these roles serve and where, in a fixed order: (purpose, address)."""
    center, manager = settings.agentcenter, settings.manager
    found: list[tuple[str, str]] = []
    if "ac" in roles:
        found.append(("agents", _at(center.listen, center.grpc_port)))
        found.append(("gateway API", f"https://{_at(center.listen, center.http_port)}"))
    if "sd" in roles:
        found.append(
            ("discovery", f"http://{_at(settings.discovery.listen, settings.discovery.port)}")
        )
    if "manager" in roles:
        found.append(("manager", f"http://{_at(manager.listen, manager.port)}"))
        if manager.tls_port is not None:
            found.append(("manager", f"https://{_at(manager.listen, manager.tls_port)}"))
    return found


def show(settings: Settings, roles: Collection[str]) -> None:
    """Print addresses and how to log in, past the log to the standard output itself.

    The first password is shown on a terminal only, and only until it was changed.
    """
    if sys.__stdout__ is not None:
        is_terminal = sys.__stdout__.isatty()
        sys.__stdout__.write(text(settings, roles, with_password=is_terminal))
        sys.__stdout__.flush()


def text(settings: Settings, roles: Collection[str], with_password: bool) -> str:
    """The lines that `show` prints."""
    lines = [f"  {purpose:<12} {where}" for purpose, where in addresses(settings, roles)]
    if "manager" in roles:
        lines += _login(settings, with_password)
    return "\nelkeid is ready (Ctrl-C stops it)\n" + "\n".join(lines) + "\n\n"


def _login(settings: Settings, with_password: bool) -> list[str]:
    path = settings.server.keys_dir / ADMIN_PASSWORD_FILE
    url, option = _login_url(settings)
    try:
        password = path.read_text(encoding="utf-8").strip()
    except OSError:  # changed since, or not ours to read
        return ["", f"  log in: {_curl(url, option, 'YOUR PASSWORD')}"]
    shown = _short(path)
    first = f"  {'user':<12} {ADMIN}, password " + (
        f"{password} (until changed also in {shown})" if with_password else f"in {shown}"
    )
    return [first, "", f"  log in: {_curl(url, option, f'$(cat {shown})')}"]


def _login_url(settings: Settings) -> tuple[str, str]:
    manager = settings.manager
    if manager.tls_port is None:
        return f"http://{_dialled(manager.listen, manager.port)}/api/v1/user/login", ""
    authority = _short(settings.server.keys_dir / "ca.crt")
    name = f"elkeid.com:{manager.tls_port}"
    to = f"--cacert {authority} --connect-to {name}:{_dialled(manager.listen, manager.tls_port)} "
    return f"https://{name}/api/v1/user/login", to


def _curl(url: str, option: str, password: str) -> str:
    body = f'{{\\"username\\":\\"{ADMIN}\\",\\"password\\":\\"{password}\\"}}'
    return f'curl -s {option}-X POST {url} --data-raw "{body}"'


def _short(path: Path) -> str:
    """The path as seen from the working directory, where it lies below that; for a shell."""
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def _dialled(listen: str, port: int) -> str:
    return _at({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen), port)  # noqa: S104


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
