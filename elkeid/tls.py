"""TLS as agents, gateways and the inner APIs speak it.

Agents dial addresses, send no server name and check the name ``elkeid.com`` whatever they
dialled; our own clients do the same. TLS 1.2 is the oldest version, and only suites with forward
secrecy and authenticated encryption are offered.

Every function returns one object with one OpenSSL context: make it once and share it. When keys
are renewed, `renew` gives it another context: connections that are there keep the old one.
"""

from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from elkeid.errors import KeysError, PeerError
from elkeid.key_making import AGENTS_NAME
from elkeid.keys import Keys

H2 = b"h2"
HTTP_1_1 = b"http/1.1"

# The suites of TLS 1.2; those of TLS 1.3 are all fit. 128 bits first: they cost least.
SUITES = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"

_Make = Callable[[Keys], SSL.Context]
_Verify = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]


class PeerNotAccepted(PeerError, SSL.Error):
    """The peer broke no rule of TLS, but is not who or what must stand at this port."""

    def __init__(self, reason: str) -> None:
        super().__init__([("elkeid", "", reason)])  # the form of an OpenSSL error queue


class _Options:
    """Makes the TLS side of connections.

    Args:
        make: the context of all of them.
        keys: what to make it from.
    """

    def __init__(self, make: _Make, keys: Keys) -> None:
        self._make, self._context = make, make(keys)

    def renew(self, keys: Keys) -> None:
        """Make connections with other keys from now on; those there are stay as they are."""
        self._context = self._make(keys)

    def connection(self) -> SSL.Connection:
        """Make the TLS state of one connection, without a socket."""
        return SSL.Connection(self._context, None)


@implementer(IOpenSSLServerConnectionCreator)
class ServerOptions(_Options):
    """Makes the TLS side of accepted connections."""

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return self.connection()


@implementer(IOpenSSLClientConnectionCreator)
class ClientOptions(_Options):
    """Makes the TLS side of dialled connections."""

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See `IOpenSSLClientConnectionCreator`."""
        return self.connection()


@implementer(IPolicyForHTTPS)
class HttpsPolicy:
    """For `twisted.web.client.Agent` and treq: the same check for every address."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """See `IPolicyForHTTPS`; the dialled name plays no part."""
        return self._options

    def renew(self, keys: Keys) -> None:
        """See `ClientOptions.renew`."""
        self._options.renew(keys)


def agent_listener_options(keys: Keys) -> ServerOptions:
    """The port that agents connect to: client certificate and HTTP/2 required."""
    return ServerOptions(_agent_listener_context, keys)


def api_server_options(keys: Keys) -> ServerOptions:
    """An HTTPS port: no client certificate, HTTP/1.1."""
    return ServerOptions(_api_server_context, keys)


def client_options(keys: Keys) -> ClientOptions:
    """Our clients of the inner APIs: no client certificate, the name ``elkeid.com`` demanded."""
    return ClientOptions(_api_client_context, keys)


def agent_client_options(keys: Keys) -> ClientOptions:
    """What a real agent does: client certificate, HTTP/2, the name ``elkeid.com`` demanded."""
    return ClientOptions(_agent_client_context, keys)


def https_policy(keys: Keys) -> HttpsPolicy:
    """`client_options` for HTTP clients that ask for a policy."""
    return HttpsPolicy(client_options(keys))


def _agent_listener_context(keys: Keys) -> SSL.Context:
    context = _server_context(keys)
    _trust(context, keys)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _accept_http2_client)
    context.set_alpn_select_callback(_choose_http2)
    # Agents stay for days and never resume: a session kept for each would only take memory.
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _api_server_context(keys: Keys) -> SSL.Context:
    context = _server_context(keys)
    context.set_alpn_select_callback(_choose_http1)
    return context


def _api_client_context(keys: Keys) -> SSL.Context:
    context = _client_context(keys, _accept_server)
    context.set_alpn_protos([HTTP_1_1])
    return context


def _agent_client_context(keys: Keys) -> SSL.Context:
    context = _client_context(keys, _accept_http2_server)
    context.set_alpn_protos([H2])
    _identify(context, keys, "client.crt", keys.client_cert, keys.client_key)
    return context


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(SUITES)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 34 KiB less for each idle connection
    return context


def _server_context(keys: Keys) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD)
    _identify(context, keys, "server.crt", keys.server_cert, keys.server_key)
    context.set_session_id(b"elkeid")
    return context


def _client_context(keys: Keys, verify: _Verify) -> SSL.Context:
    context = _context(SSL.TLS_CLIENT_METHOD)
    _trust(context, keys)
    context.set_verify(SSL.VERIFY_PEER, verify)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _identify(context: SSL.Context, keys: Keys, name: str, chain: bytes, key: bytes) -> None:
    if not chain or not key:
        raise KeysError(
            f"{keys.keys_dir / name} is needed, but was not loaded for this role; "
            "load the keys of a role that has it"
        )
    first, *others = x509.load_pem_x509_certificates(chain)
    context.use_certificate(first)
    for each in others:
        context.add_extra_chain_cert(each)
    context.use_privatekey(load_pem_private_key(key, None))  # type: ignore[arg-type]


def _trust(context: SSL.Context, keys: Keys) -> None:
    if not keys.ca_cert:
        raise KeysError(
            f"{keys.keys_dir / 'ca.crt'} is needed, but was not loaded for this role; "
            "load the keys of a role that has it"
        )
    # The default flags stay: under X509_STRICT an authority of version 1 would not count.
    store = context.get_cert_store()
    assert store is not None
    for each in x509.load_pem_x509_certificates(keys.ca_cert):
        store.add_cert(crypto.X509.from_cryptography(each))


def _choose_http2(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if H2 not in offered:
        raise PeerNotAccepted("the client offers no HTTP/2")
    return H2


def _choose_http1(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return HTTP_1_1 if HTTP_1_1 in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _accept_http2_client(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    # A client that names no protocol at all never gets to _choose_http2.
    if ok and depth == 0 and connection.get_alpn_proto_negotiated() != H2:
        raise PeerNotAccepted("the client offers no HTTP/2")
    return bool(ok)


def _accept_server(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    if ok and depth == 0:
        try:
            verify_service_identity(extract_patterns(certificate), [DNS_ID(AGENTS_NAME)], [])
        except (VerificationError, ValueError) as reason:
            raise PeerNotAccepted(f"the server's certificate is not for {AGENTS_NAME}") from reason
    return bool(ok)


def _accept_http2_server(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    if ok and depth == 0 and connection.get_alpn_proto_negotiated() != H2:
        raise PeerNotAccepted("the server does not choose HTTP/2")
    return _accept_server(connection, certificate, error, depth, ok)
