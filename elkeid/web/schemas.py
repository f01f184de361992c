"""Requests against their declared schemas: msgspec decides, the answer names the field."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from elkeid.web.refusals import ParameterInvalid

MAX_QUERY_FIELDS = 200  # more than any route has; parsing them is work before authentication
_INTEGER = re.compile(r"[+-]?[0-9]+\Z")
_AT = re.compile(r" - at `\$\.?(?P<path>.*)`\Z", re.DOTALL)


def explain(error: Exception, where: str) -> str:
    """Say what is wrong with a request as ``field: reason``.

    Args:
        error: what msgspec raised; it carries the place as a JSON path.
        where: ``body`` or ``query``, for faults that concern the whole of it.
    """
    text = str(error)
    found = _AT.search(text)
    reason = text[: found.start()] if found else text
    place = found["path"] if found else ""
    return f"{place or where}: {reason[:1].lower()}{reason[1:]}"


class QuerySchema:
    """Decodes a query string into a `msgspec.Struct`.

    Of a repeated key the first value counts, unless the field is a list. Texts become numbers
    and booleans where the field asks for them, ``1.0`` being no integer; unknown keys are ignored.
    """

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self.struct = struct
        fields = msgspec.inspect.type_info(struct).fields  # type: ignore[attr-defined]
        self._lists = _names(fields, msgspec.inspect.ListType)
        self._integers = _names(fields, msgspec.inspect.IntType)

    def decode(self, raw: bytes) -> Any:
        """Decode the bytes after ``?``; `ParameterInvalid` names the field."""
        values: dict[str, Any] = {}
        if raw:
            try:
                pairs = parse_qsl(
                    raw.decode("latin-1"),
                    keep_blank_values=True,
                    max_num_fields=MAX_QUERY_FIELDS,
                )
            except ValueError as error:
                raise ParameterInvalid(f"query: {error}") from error
            for name, value in pairs:
                if name in self._lists:
                    values.setdefault(name, []).append(value)
                else:
                    values.setdefault(name, value)
        for name in self._integers & values.keys():
            if not _INTEGER.match(values[name]):
                raise ParameterInvalid(f"{name}: expected `int`")
        try:
            return msgspec.convert(values, self.struct, strict=False)
        except msgspec.ValidationError as error:
            raise ParameterInvalid(explain(error, "query")) from error


def _names(fields: Iterable[msgspec.inspect.Field], kind: type[msgspec.inspect.Type]) -> set[str]:
    return {field.encode_name for field in fields if isinstance(field.type, kind)}


class BodySchema:
    """Decodes a JSON body, whatever its content type; unknown fields are ignored."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._shape = msgspec.inspect.type_info(kind)

    def decode(self, raw: bytes) -> Any:
        """Decode a body; `ParameterInvalid` names the field."""
        try:
            return self._decoder.decode(raw)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ParameterInvalid(explain(error, "body")) from error
        except UnicodeDecodeError as error:
            raise ParameterInvalid("body: not UTF-8") from error
        except RecursionError as error:
            raise ParameterInvalid("body: nested too deeply") from error

    def known(self, value: Any) -> Any:
        """A valid body, as plain JSON values, without the fields that are ignored."""
        return _known(value, self._shape)


def _known(value: Any, shape: msgspec.inspect.Type) -> Any:
    if isinstance(shape, msgspec.inspect.Metadata):
        return _known(value, shape.type)
    if isinstance(shape, msgspec.inspect.UnionType):
        kinds = _CONTAINERS.get(type(value), ())
        fitting = [each for each in map(_plain, shape.types) if isinstance(each, kinds)]
        return _known(value, fitting[0]) if len(fitting) == 1 else value
    if isinstance(shape, msgspec.inspect.StructType) and isinstance(value, dict):
        return {
            field.encode_name: _known(value[field.encode_name], field.type)
            for field in shape.fields
            if field.encode_name in value
        }
    if isinstance(shape, msgspec.inspect.ListType) and isinstance(value, list):
        return [_known(each, shape.item_type) for each in value]
    if isinstance(shape, msgspec.inspect.DictType) and isinstance(value, dict):
        return {key: _known(each, shape.value_type) for key, each in value.items()}
    return value


def _plain(shape: msgspec.inspect.Type) -> msgspec.inspect.Type:
    return shape.type if isinstance(shape, msgspec.inspect.Metadata) else shape


_CONTAINERS: dict[type, tuple[type[msgspec.inspect.Type], ...]] = {
    dict: (msgspec.inspect.StructType, msgspec.inspect.DictType),
    list: (msgspec.inspect.ListType,),
}
"""What a JSON value can be of a union."""
