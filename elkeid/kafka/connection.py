"""Section ``[kafka]`` in the words of kafka-python."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from twisted.logger import Logger

from elkeid.config import KafkaSettings
from elkeid.errors import OperatorError

CLIENT_ID: Final = "elkeid"

REQUEST_TIMEOUT_MS: Final = 15_000
"""After so long without an answer a connection is given up and another made: a stalled network
costs so much and no more. A broker that waits for its followers answers within 10 s."""

_log = Logger(namespace="kafka")


class _ToTwisted(logging.Handler):
    """What the client library says, as details: what matters is said in our own words."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        _log.debug("{text}", text=record.getMessage())


def quiet_library() -> None:
    """Take the library's log lines, which come by the hundred while a broker is away."""
    logger = logging.getLogger("kafka")
    if not logger.handlers:
        logger.addHandler(_ToTwisted())
    logger.propagate = False
    logger.setLevel(logging.WARNING)  # below, it formats every request


def connection_options(settings: KafkaSettings) -> Mapping[str, Any]:
    """What producer, consumer and tools are given to reach the brokers.

    Raises:
        OperatorError: the password file or the CA file cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.brokers),
        "client_id": CLIENT_ID,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.startswith("SASL_"):
        path = settings.sasl_password_file
        assert path is not None  # the settings were checked
        try:
            password = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise OperatorError(
                f"{path}: {reason}; kafka.sasl_password_file must name a file with the password"
            ) from error
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": password,
        }
    if settings.security_protocol.endswith("SSL") and settings.ca_file is not None:
        if not settings.ca_file.is_file():
            raise OperatorError(
                f"{settings.ca_file}: no such file; kafka.ca_file must name the certificates "
                "that sign the brokers'"
            )
        options["ssl_cafile"] = str(settings.ca_file)
    return options
