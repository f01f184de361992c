"""One face as an OpenAPI 3.1 document, made from the declarations that requests are checked by.

What a route takes comes from its schemas, what it answers from ``answer`` and the face's
envelope, who may call it from its kind of authentication and its levels. Nothing is written
down twice, so the document cannot say anything else than the face does.

Source: OpenAPI 3.1.1 (https://spec.openapis.org/oas/v3.1.1.html).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from attrs import frozen

from elkeid.web.routes import PART, UNDECLARED, AuthKind, Route

OPENAPI: Final = "3.1.1"
JSON: Final = "application/json"
FORM: Final = "multipart/form-data"
_REF: Final = "#/components/schemas/{name}"
_PART_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "string": {"type": "string", "minLength": 1, "pattern": "^[^/]+$"},
    "path": {"type": "string", "minLength": 1},
    "int": {"type": "integer", "minimum": 0},
}
_REFUSALS: Final[Mapping[int, str]] = {
    400: "The query or body breaks its schema; `data` begins with the field at fault",
    401: "Nobody is known by this token or signature",
    403: "Known, but not for this; or from where this is not served",
    404: "There is nothing of this name",
    413: "The body exceeds {limit} bytes",
    503: "Not now: a limit is reached, or the role is not ready",
}
SECURITY_SCHEMES: Final[Mapping[str, Mapping[str, str]]] = {
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "token",
        "description": "Of a login. It lives as long as it is used.",
    },
    "AccessKey": {
        "type": "apiKey",
        "in": "header",
        "name": "AccessKey",
        "description": "AK: names the secret key (SK) that signs the request.",
    },
    "TimeStamp": {
        "type": "apiKey",
        "in": "header",
        "name": "TimeStamp",
        "description": "Unix seconds; less than 60 s off the server's clock.",
    },
    "Signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "Lower-case hex of the HMAC-SHA256 under SK of method, path, query, AK, "
        "TimeStamp and the body's SHA-256 in hex (nothing for an empty body), joined by the two "
        "characters backslash and n. The query holds a `nonce`, and no request is taken twice.",
    },
}
"""What the kinds of authentication look like; a signature is its three headers together."""

_SECURITY: Final[Mapping[AuthKind, list[dict[str, list[str]]]]] = {
    AuthKind.NONE: [],
    AuthKind.TOKEN: [{"token": []}],
    AuthKind.SIGNED: [{"AccessKey": [], "TimeStamp": [], "Signature": []}],
}


@frozen(kw_only=True)
class About:
    """What a document says of its face as a whole.

    Args:
        title: its name.
        version: of the program.
        description: Markdown.
        codes: every ``code`` but 0 -> its ``msg``.
    """

    title: str
    version: str
    description: str
    codes: Mapping[int, str]


def template_of(route: Route) -> str:
    """The route's path as OpenAPI writes it: ``/agent/{agent_id}``."""
    return route.path_with(lambda name: "{" + name + "}")


def document(routes: Iterable[Route], about: About) -> dict[str, Any]:
    """The document.

    Args:
        routes: of the face, as mounted.
        about: the face.

    Returns:
        JSON-ready; paths and schemas are in a fixed order.
    """
    ordered = sorted(routes, key=lambda route: (route.path, route.method))
    schemas = _Schemas(ordered)
    schemas.components["Refusal"] = {
        "title": "Refusal",
        "description": "Why a request was not served.",
        "type": "object",
        "properties": {
            "code": {"type": "integer", "enum": sorted(about.codes)},
            "msg": {"type": "string", "description": "Follows from `code`."},
            "data": {"type": "string", "description": "The reason, for people."},
        },
        "required": ["code", "msg", "data"],
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in ordered:
        paths.setdefault(template_of(route), {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": about.title,
            "version": about.version,
            "description": about.description + _codes(about.codes),
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted({_tag(route) for route in ordered})],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": dict(SECURITY_SCHEMES),
        },
    }


def _codes(codes: Mapping[int, str]) -> str:
    rows = "".join(f"\n| {code} | {text} |" for code, text in sorted(codes.items()))
    return f"\n\n| code | msg |\n|---|---|\n| 0 | success |{rows}\n"


class _Schemas:
    """The schemas of all that the routes name, and the components these refer to."""

    def __init__(self, routes: Iterable[Route]) -> None:
        kinds: dict[int, Any] = {}
        for route in routes:
            named = [route.answer, route.beside, *route.also.values()]
            named.append(None if route.query is None else route.query.struct)
            named.append(None if route.body is None else route.body.kind)
            kinds |= {id(kind): kind for kind in named if kind is not UNDECLARED}
        found, self.components = msgspec.json.schema_components(kinds.values(), ref_template=_REF)
        self._found = {key: _portable(one) for key, one in zip(kinds, found, strict=True)}
        self.components = {name: _portable(one) for name, one in self.components.items()}

    def of(self, kind: Any) -> Any:
        """The schema of a type that a route names."""
        return {} if kind is UNDECLARED else self._found[id(kind)]

    def fields_of(self, kind: Any) -> Any:
        """The schema of a struct, itself and no reference to it."""
        schema = self.of(kind)
        name = schema.get("$ref", "").rpartition("/")[2]
        return self.components[name] if name else schema


def _portable(schema: Any) -> Any:
    r"""A schema whose patterns end as ECMA-262 writes it: ``\Z`` is Python's."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\Z", "$")
            if key == "pattern" and isinstance(value, str)
            else _portable(value)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [_portable(one) for one in schema]
    return schema


def _tag(route: Route) -> str:
    """Routes of one subject stand together: ``v1 agent`` for ``/api/v1/agent/...``."""
    parts = route.path.strip("/").split("/")
    return " ".join(parts[1:3]) if parts[0] == "api" and len(parts) > 2 else "server"


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", template_of(route)).strip("_")
    operation: dict[str, Any] = {
        "tags": [_tag(route)],
        "operationId": f"{route.method.lower()}_{name}",
        "summary": route.summary,
        "description": _description(route),
        "security": _SECURITY[route.auth],
        "parameters": [*_path_parameters(route), *_query_parameters(route, schemas)],
    }
    if route.spooled:
        form = {FORM: {"schema": {"type": "object"}}}
        operation["requestBody"] = {"required": True, "content": form}
    elif route.body is not None:
        content = {JSON: {"schema": schemas.of(route.body.kind)}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.auth is AuthKind.TOKEN:
        operation["x-levels"] = sorted(route.levels)
    if route.upgrades:
        operation["x-messages"] = schemas.of(route.answer)
    operation["responses"] = _responses(route, schemas)
    return operation


def _description(route: Route) -> str:
    text = " ".join((route.handler.__doc__ or "").split())
    if route.auth is AuthKind.TOKEN:
        text += f"\n\nFor users of level {', '.join(map(str, sorted(route.levels)))}."
    return text.strip()


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": part["name"],
            "in": "path",
            "required": True,
            "schema": dict(_PART_SCHEMAS[part["kind"] or "string"]),
        }
        for part in PART.finditer(route.path)
    ]


def _query_parameters(route: Route, schemas: _Schemas) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    struct = schemas.fields_of(route.query.struct)
    required = struct.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in struct["properties"].items()
    ]


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    refused = {"schema": {"$ref": _REF.format(name="Refusal")}}
    answers: dict[str, Any] = {"200": _success(route, schemas)}
    if route.upgrades:
        answers = {"101": {"description": "A WebSocket; `x-messages` says what it brings."}}
    for status in _refused_with(route):
        text = _REFUSALS[status].format(limit=route.limit)
        answers[str(status)] = {"description": text, "content": {JSON: refused}}
    for status, kind in route.also.items():
        content = {JSON: {"schema": schemas.of(kind)}}
        answers[str(status)] = {"description": "See `data`.", "content": content}
    if route.auth is AuthKind.TOKEN:
        header = {"description": "The user's name.", "schema": {"type": "string"}}
        for known in ("200", "403"):
            answers[known]["headers"] = {"user": header}
    return dict(sorted(answers.items()))


def _refused_with(route: Route) -> list[int]:
    statuses = [400, 503]
    if route.auth is not AuthKind.NONE:
        statuses += [401, 403]
    if PART.search(route.path):
        statuses.append(404)
    if route.method not in ("GET", "HEAD"):
        statuses.append(413)
    return statuses


def _success(route: Route, schemas: _Schemas) -> dict[str, Any]:
    """The answers of status 200: a success, and refusals that the codes tell apart."""
    content: dict[str, Any] = {}
    if route.media != JSON:
        content[route.media] = {}
    elif not route.enveloped:
        content[JSON] = {"schema": schemas.of(route.answer)}
    if route.enveloped:
        refusal = {"$ref": _REF.format(name="Refusal")}
        whole = [refusal] if content else [_enveloped(route, schemas), refusal]
        content[JSON] = {"schema": {"oneOf": whole} if len(whole) > 1 else refusal}
    return {"description": "Done, unless `code` says otherwise.", "content": content}


def _enveloped(route: Route, schemas: _Schemas) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "code": {"const": 0},
        "msg": {"const": "success"},
        "data": schemas.of(route.answer),
    }
    required = ["code", "msg", "data"]
    if route.beside is not None:
        beside = schemas.fields_of(route.beside)
        fields |= beside["properties"]
        required += beside.get("required", [])
    return {"type": "object", "properties": fields, "required": required}
