"""Hooks of schemathesis: its requests bear a token, and are signed."""

import os
import secrets
import time
from urllib.parse import unquote, urlsplit

import schemathesis
from requests import PreparedRequest
from requests.auth import AuthBase

from elkeid.wire.signature import body_hash, sign

AK, SK, TOKEN = (os.environ[f"ELKEID_TEST_{name}"] for name in ("AK", "SK", "TOKEN"))


class Known(AuthBase):
    """Whom every route knows."""

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        body = request.body or b""
        whole = body.encode() if isinstance(body, str) else body
        assert request.url is not None
        assert request.method is not None
        request.url += f"{'&' if '?' in request.url else '?'}nonce={secrets.token_urlsafe(16)}"
        parts, stamp = urlsplit(request.url), str(int(time.time()))
        path, hashed = unquote(parts.path, errors="surrogateescape"), body_hash(whole)
        signature = sign(request.method, path, parts.query, AK, SK, stamp, hashed=hashed)
        request.headers.update(
            {"token": TOKEN, "AccessKey": AK, "TimeStamp": stamp, "Signature": signature}
        )
        return request


schemathesis.auth.set_from_requests(Known())
