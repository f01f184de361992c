"""Reading ``multipart/form-data`` from disk: small fields to memory, one file to another file.

Source: RFC 7578; the parts' grammar is `werkzeug.sansio.multipart`'s. Blocking: used in threads.
"""

from collections.abc import Callable
from typing import IO

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from elkeid.web.refusals import ParameterInvalid

PIECE = 64 << 10  # bytes read at once
PARTS = 16  # of one form; ours have two
FIELD_BYTES = 4096  # of one value that is no file


def boundary_of(content_type: str | None) -> bytes:
    """The boundary that a Content-Type names; `ParameterInvalid` if it is of no form."""
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise ParameterInvalid("body: not multipart/form-data")
    return boundary.encode()


def read_form(
    source: IO[bytes], boundary: bytes, file_field: str, keep: Callable[[bytes], None]
) -> tuple[dict[str, str], bool]:
    """Read a whole form.

    Args:
        source: at its beginning.
        boundary: see `boundary_of`.
        file_field: name of the part whose content goes to ``keep``, piece by piece.
        keep: takes a piece.

    Returns:
        The other fields, of which the first of a name counts, and whether the file was there.

    Raises:
        ParameterInvalid: it is no form, or larger than forms are.
    """
    decoder = MultipartDecoder(boundary, max_parts=PARTS)
    fields: dict[str, bytearray] = {}
    into: bytearray | None = None
    keeping = found = False
    while True:
        try:
            event = decoder.next_event()
            if isinstance(event, NeedData):
                decoder.receive_data(source.read(PIECE) or None)
                continue
        except (ValueError, RequestEntityTooLarge) as error:
            raise ParameterInvalid(f"body: {error}") from error
        if isinstance(event, Field | File):
            keeping = event.name == file_field and not found
            found = found or keeping
            into = None
            if not keeping and event.name not in fields:
                into = fields[str(event.name)] = bytearray()
        elif isinstance(event, Data):
            if keeping:
                keep(event.data)
            elif into is not None:
                if len(into) + len(event.data) > FIELD_BYTES:
                    raise ParameterInvalid(f"body: a field of more than {FIELD_BYTES} bytes")
                into += event.data
        elif isinstance(event, Epilogue):
            return {name: value.decode("utf-8", "replace") for name, value in fields.items()}, found
