"""Every answer of the Manager against its own OpenAPI document."""

from typing import Any

import jsonschema_rs
import msgspec

from elkeid.manager.api import ABOUT
from elkeid.web.api import Api
from elkeid.web.openapi import JSON, document, template_of

REFUSAL = {"$ref": "#/components/schemas/Refusal"}


class Contract:
    """The document of one face, and what was made of it.

    Args:
        api: the face.
    """

    def __init__(self, api: Api) -> None:
        self.document = document(api.routes, ABOUT)
        self._validators: dict[tuple[str, str, int], Any] = {}

    def check(
        self, api: Api, method: str, path: str, *, status: int, kind: str, body: bytes
    ) -> None:
        """Fail unless the document knows this status, content type and body for a request."""
        if path == "/metrics":
            return
        route = api.route_of(method.encode(), path.encode())
        if route is None:
            assert status == 404, f"{method} {path}: {status}"
            self._conforms(("", "", 404), REFUSAL, body)
            return
        template = template_of(route)
        about = f"{method} {template}: {status} {kind}"
        answers = self.document["paths"][template][method.lower()]["responses"]
        assert str(status) in answers, f"{about}: undocumented status, {body[:500]!r}"
        content = answers[str(status)]["content"]
        media = kind.partition(";")[0]
        assert media in content, f"{about}: undocumented content type"
        if media == JSON:
            self._conforms((method, template, status), content[media]["schema"], body)

    def _conforms(self, key: tuple[str, str, int], schema: dict[str, Any], body: bytes) -> None:
        validator = self._validators.get(key)
        if validator is None:
            whole = schema | {"components": self.document["components"]}
            validator = self._validators[key] = jsonschema_rs.Draft202012Validator(whole)
        error = next(validator.iter_errors(msgspec.json.decode(body)), None)
        assert error is None, f"{key}: {error} in {body[:2000]!r}"


_contracts: dict[tuple[tuple[str, str], ...], Contract] = {}


def contract_of(api: Api) -> Contract:
    """The contract of a face; faces with the same routes share one."""
    key = tuple((route.method, route.path) for route in api.routes)
    if key not in _contracts:
        _contracts[key] = Contract(api)
    return _contracts[key]
