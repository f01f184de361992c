"""``/api/openapi.json`` and ``/api/docs``: a face tells what it serves.

Both are open to everybody: they hold what the declarations say, and nothing of this server. The
page takes nothing from elsewhere, and its policy lets a browser neither load nor send anything
to another place.
"""

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from elkeid.web.answers import Answer, encode_json
from elkeid.web.openapi import About, document
from elkeid.web.routes import Call, Route, Routes

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def policy_of(page: str) -> str:
    """The Content-Security-Policy under which a page may do what it does itself, and no more."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        digest = b64encode(sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    inline = "; ".join(f"{kind}-src {' '.join(each)}" for kind, each in hashes.items() if each)
    return (
        f"default-src 'none'; {inline}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class DocumentationRoutes:
    """The document of a face, and a page to read it in.

    Args:
        about: the face.
    """

    routes = Routes("/api")

    def __init__(self, about: About) -> None:
        self._about = about
        self._document = b""
        page = files(__package__).joinpath("api_page.html").read_text(encoding="utf-8")
        self._page = page.encode()
        self._page_headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": policy_of(page),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }

    def describe(self, routes: Iterable[Route]) -> None:
        """Serve the document of these from now on."""
        self._document = encode_json(document(routes, self._about))

    @routes.get(
        "/openapi.json",
        answer=dict[str, Any],
        enveloped=False,
        summary="This document",
    )
    async def openapi(self, call: Call) -> object:
        """OpenAPI 3.1."""
        return Answer(200, self._document)

    @routes.get(
        "/docs",
        answer=str,
        enveloped=False,
        media="text/html",
        summary="A page to read this document in",
    )
    async def docs(self, call: Call) -> object:
        """It takes nothing from anywhere else."""
        return Answer(200, self._page, self._page_headers)
