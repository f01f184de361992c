"""``/api/v6/license``: what consoles ask for before anything else. Nothing is licensed here.

Source: docs/protocol.md, "Manager API", "License".
"""

from collections.abc import Callable

import msgspec

from elkeid.manager.roles import EVERY_USER
from elkeid.web.routes import AuthKind, Call, Routes

EXPIRES_SECONDS = 99_999
"""From now on, whenever one asks: consoles warn when it comes near."""

COMPANY = "Elkeid Open Source"


class Modules(msgspec.Struct):
    """What may be used."""

    hub: bool = True
    trace: bool = True
    k8s: bool = True
    rule: bool = True
    rasp: bool = True


class LicenseInfo(msgspec.Struct):
    """Answer of ``info``."""

    company_name: str
    status: Modules


class ModuleLicense(msgspec.Struct):
    """Of one module."""

    status: str
    expire_time: int  # unix seconds
    all_cores: int
    used_cores: int


class LicenseDetail(msgspec.Struct):
    """Answer of ``detail``."""

    hub: ModuleLicense
    trace: ModuleLicense
    k8s: ModuleLicense
    rule: ModuleLicense
    rasp: ModuleLicense


class LicenseRoutes:
    """Says that everything may be used.

    Args:
        wall: seconds since the epoch.
    """

    routes = Routes("/api/v6/license", auth=AuthKind.TOKEN)

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall

    @routes.get("/info", levels=EVERY_USER, answer=LicenseInfo, summary="Tell what may be used")
    async def info(self, call: Call) -> object:
        """Everything."""
        return LicenseInfo(COMPANY, Modules())

    @routes.get(
        "/detail", levels=EVERY_USER, answer=LicenseDetail, summary="Tell for how long and how much"
    )
    async def detail(self, call: Call) -> object:
        """For ever, of which clients are told a part."""
        expires = int(self._wall()) + EXPIRES_SECONDS
        each = ModuleLicense("activated", expires, 200, 0)
        return LicenseDetail(hub=each, trace=each, k8s=each, rule=each, rasp=each)
