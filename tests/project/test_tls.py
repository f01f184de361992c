"""Who may speak to whom over TLS, tried by whole handshakes in memory."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from attrs import evolve
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from elkeid import tls
from elkeid.errors import KeysError
from elkeid.key_making import make_keys
from elkeid.keys import Keys

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def keys_of(files: dict[str, bytes]) -> Keys:
    """A set of keys as `elkeid.keys` loads it, without its checks."""
    return Keys(
        keys_dir=Path("keys"),
        ca_cert=files["ca.crt"],
        server_cert=files["server.crt"],
        server_key=files["server.key"],
        client_cert=files["client.crt"],
        client_key=files["client.key"],
    )


OUR_FILES = make_keys([], NOW)
OURS, STRANGERS = keys_of(OUR_FILES), keys_of(make_keys([], NOW))


def issued(name: str, until: datetime.datetime) -> tuple[bytes, bytes]:
    """A certificate of our authority and its key, good for every purpose."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.load_pem_x509_certificate(OUR_FILES["ca.crt"])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elkeid.com")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - 2 * DAY)
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(
            cast(rsa.RSAPrivateKey, load_pem_private_key(OUR_FILES["ca.key"], None)),
            hashes.SHA256(),
        )
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def server_issued(name: str, until: datetime.datetime) -> Keys:
    """Our keys with another server certificate."""
    certificate, key = issued(name, until)
    return evolve(OURS, server_cert=certificate, server_key=key)


@implementer(IHandshakeListener)
class Echo(Protocol):
    """Answers what it gets, and remembers how it ended."""

    handshaken = False
    got = b""
    reason: Failure | None = None

    def __init__(self, answer: bool) -> None:
        self._answer = answer

    def handshakeCompleted(self) -> None:
        """See `IHandshakeListener`."""
        self.handshaken = True
        if not self._answer:
            assert self.transport is not None
            self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        """See `Protocol`."""
        self.got += data
        if self._answer:
            assert self.transport is not None
            self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `Protocol`."""
        self.reason = reason


class Meeting:
    """A client and a server joined in memory, after everything was exchanged."""

    def __init__(self, server_options: Any, client_options: Any) -> None:
        self.server, self.client = Echo(True), Echo(False)
        self.server_tls = _wrapped(server_options, False, self.server)
        self.client_tls = _wrapped(client_options, True, self.client)
        self.pump = iosim.connect(
            self.server_tls,
            iosim.FakeTransport(self.server_tls, isServer=True),
            self.client_tls,
            iosim.FakeTransport(self.client_tls, isServer=False),
        )
        self.pump.flush()

    @property
    def works(self) -> bool:
        """Whether data went both ways."""
        return self.client.got == b"hello" and self.client.reason is self.server.reason is None


def _wrapped(options: Any, is_client: bool, protocol: Protocol) -> TLSMemoryBIOProtocol:
    factory = TLSMemoryBIOFactory(options, is_client, cast(Any, WrappingFactory(cast(Any, None))))
    factory.noisy = False
    wrapped: TLSMemoryBIOProtocol = TLSMemoryBIOProtocol(factory, protocol)
    return wrapped


def _server_pair(certificate: bytes, key: bytes) -> dict[str, bytes]:
    return {"server_cert": certificate, "server_key": key}


def _shown(meeting: "Meeting") -> bytes:
    """The certificate that the server showed."""
    shown = meeting.client_tls._tlsConnection.get_peer_certificate(as_cryptography=True)
    return cast(bytes, shown.public_bytes(Encoding.DER))


def changed_client(change: Callable[[SSL.Context], object], keys: Keys = OURS) -> tls.ClientOptions:
    """An agent whose TLS context was changed."""
    options = tls.agent_client_options(keys)
    change(options._context)
    return options


class AgentPortTests(SynchronousTestCase):
    """The port agents connect to."""

    def meet(self, client: Any, keys: Keys = OURS) -> Meeting:
        """Join a client and the agents' port."""
        return Meeting(tls.agent_listener_options(keys), client)

    def assert_refused(self, meeting: Meeting, text: str = "") -> None:
        """The server delivers nothing and ends the connection, for that reason."""
        self.assertEqual(meeting.server.got, b"")
        self.assertFalse(meeting.server.handshaken)
        self.assertIsNotNone(meeting.server.reason)
        assert meeting.server.reason is not None
        self.assertIn(text, repr(meeting.server.reason.value))

    def test_agent_is_accepted(self) -> None:
        """An agent of ours gets in, speaks HTTP/2 over TLS 1.3 and sends no server name."""
        meeting = self.meet(tls.agent_client_options(OURS))
        self.assertTrue(meeting.works)
        self.assertEqual(meeting.server_tls.negotiatedProtocol, b"h2")
        self.assertEqual(meeting.client_tls.negotiatedProtocol, b"h2")
        handle = meeting.server_tls.getHandle()
        self.assertEqual(handle.get_protocol_version_name(), "TLSv1.3")
        self.assertIsNone(handle.get_servername())

    def test_tls_1_2_with_each_suite(self) -> None:
        """Older agents get in over TLS 1.2 with any suite that has forward secrecy and AEAD."""
        for suite in (
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
        ):

            def old(context: SSL.Context, suite: str = suite) -> None:
                context.set_max_proto_version(SSL.TLS1_2_VERSION)
                context.set_cipher_list(suite.encode())

            meeting = self.meet(changed_client(old))
            self.assertTrue(meeting.works, suite)
            self.assertEqual(meeting.server_tls.getHandle().get_cipher_name(), suite)

    def test_cbc_suites_are_refused(self) -> None:
        """A client that knows only CBC suites is turned away."""

        def only_cbc(context: SSL.Context) -> None:
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            context.set_cipher_list(b"ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256")

        self.assert_refused(self.meet(changed_client(only_cbc)), "no shared cipher")

    def test_tls_1_1_is_refused(self) -> None:
        """A client that knows nothing newer than TLS 1.1 is turned away with a TLS alert."""

        def only_1_1(context: SSL.Context) -> None:
            context.set_min_proto_version(SSL.TLS1_1_VERSION)
            context.set_max_proto_version(SSL.TLS1_1_VERSION)
            context.set_cipher_list(b"ALL:@SECLEVEL=0")

        self.assert_refused(self.meet(changed_client(only_1_1)), "unsupported protocol")

    def test_no_certificate(self) -> None:
        """A client without a certificate is turned away, over either version of TLS."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            options = tls.client_options(OURS)
            options._context.set_alpn_protos([b"h2"])
            options._context.set_max_proto_version(version)
            self.assert_refused(self.meet(options), "peer did not return a certificate")

    def test_certificate_of_another_authority(self) -> None:
        """Agents of another deployment are turned away, even when they trust ours."""
        options = tls.agent_client_options(evolve(STRANGERS, ca_cert=OURS.ca_cert))
        self.assert_refused(self.meet(options), "certificate verify failed")

    def test_expired_certificate(self) -> None:
        """An agent whose certificate has ended is turned away."""
        for until, works in [(NOW + DAY, True), (NOW - DAY, False)]:
            certificate, key = issued("elkeid.com", until)
            agent = evolve(OURS, client_cert=certificate, client_key=key)
            meeting = self.meet(tls.agent_client_options(agent))
            self.assertEqual(meeting.works, works)
        self.assert_refused(meeting, "certificate verify failed")

    def test_server_certificate_is_no_agent_certificate(self) -> None:
        """A certificate made for servers does not open the agents' port."""
        posing = evolve(OURS, client_cert=OURS.server_cert, client_key=OURS.server_key)
        self.assert_refused(self.meet(tls.agent_client_options(posing)), "verify failed")

    def test_no_http2_offered(self) -> None:
        """A client that offers only HTTP/1.1 is turned away during the handshake."""
        options = changed_client(lambda context: context.set_alpn_protos([b"http/1.1"]))
        self.assert_refused(self.meet(options), "no HTTP/2")

    def test_no_protocol_offered(self) -> None:
        """A client that says nothing about its protocol is turned away as well."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            options = tls.client_options(OURS)
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(version)
            tls._identify(context, OURS, "client.crt", OURS.client_cert, OURS.client_key)
            options._context = context
            self.assert_refused(self.meet(options), "no HTTP/2")

    def test_a_refusal_harms_no_later_client(self) -> None:
        """After refused clients the same port serves the next one."""
        listener = tls.agent_listener_options(OURS)
        for bad in (
            changed_client(lambda context: context.set_alpn_protos([b"http/1.1"])),
            tls.client_options(OURS),
            tls.agent_client_options(evolve(STRANGERS, ca_cert=OURS.ca_cert)),
        ):
            self.assertFalse(Meeting(listener, bad).works)
            self.assertTrue(Meeting(listener, tls.agent_client_options(OURS)).works)

    def test_no_session_is_kept(self) -> None:
        """A returning agent makes a full handshake: sessions are neither kept nor handed out."""
        listener = tls.agent_listener_options(OURS)

        def only_1_2(context: SSL.Context) -> None:
            context.set_max_proto_version(SSL.TLS1_2_VERSION)

        client = changed_client(only_1_2)
        first = Meeting(listener, client)
        session = first.client_tls.getHandle().get_session()

        class Returning(tls.ClientOptions):
            def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
                connection = super().clientConnectionForTLS(tlsProtocol)
                connection.set_session(session)
                return connection

        again = Meeting(listener, Returning(lambda keys: client._context, OURS))
        self.assertTrue(again.works)
        self.assertFalse(_resumed(again))

    def test_renegotiation_is_refused(self) -> None:
        """A client cannot make the server negotiate again and again."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_alpn_protos([b"h2"])
        tls._identify(context, OURS, "client.crt", OURS.client_cert, OURS.client_key)
        meeting = self.meet(tls.ClientOptions(lambda keys: context, OURS))
        self.assertTrue(meeting.works)
        client, server = meeting.client_tls.getHandle(), meeting.server_tls.getHandle()
        self.assertTrue(client.renegotiate())
        self.assertRaises(SSL.WantReadError, client.do_handshake)
        meeting.client_tls._flushSendBIO()
        meeting.pump.flush()
        self.assertEqual(server.total_renegotiations(), 0)
        self.assertEqual(client.total_renegotiations(), 1)
        self.assertIsNotNone(meeting.client.reason)

    def test_random_bytes(self) -> None:
        """Bytes that are no TLS end the connection and nothing else."""
        transport = StringTransport()
        server = Echo(True)
        wrapped = _wrapped(tls.agent_listener_options(OURS), False, server)
        wrapped.makeConnection(transport)
        wrapped.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertTrue(transport.disconnecting)
        self.assertEqual(server.got, b"")


def _resumed(meeting: Meeting) -> bool:
    return bool(cast(Any, SSL)._lib.SSL_session_reused(meeting.client_tls.getHandle()._ssl))


class AgentTests(SynchronousTestCase):
    """What the simulated agent demands of a gateway."""

    def assert_left(self, server: Any, text: str) -> None:
        """The agent leaves that server, for that reason."""
        meeting = Meeting(server, tls.agent_client_options(OURS))
        self.assertFalse(meeting.works)
        assert meeting.client.reason is not None
        self.assertIn(text, repr(meeting.client.reason.value))

    def test_gateway_of_another_deployment(self) -> None:
        """An agent does not talk to a server of another authority."""
        server = tls.agent_listener_options(evolve(STRANGERS, ca_cert=OURS.ca_cert))
        self.assert_left(server, "certificate verify failed")

    def test_gateway_without_the_name(self) -> None:
        """A certificate of the right authority that lacks elkeid.com is not enough."""
        self.assert_left(
            tls.agent_listener_options(server_issued("elkeid.org", NOW + DAY)), "not for elkeid.com"
        )

    def test_expired_gateway(self) -> None:
        """An agent leaves a gateway whose certificate has ended."""
        old = server_issued("elkeid.com", NOW - DAY)
        self.assert_left(tls.agent_listener_options(old), "certificate verify failed")

    def test_gateway_without_http2(self) -> None:
        """An agent leaves a server that does not choose HTTP/2."""
        self.assert_left(tls.api_server_options(OURS), "does not choose HTTP/2")


class ApiTests(SynchronousTestCase):
    """The HTTPS APIs and their clients."""

    def test_our_client(self) -> None:
        """Our client needs no certificate, speaks HTTP/1.1 and checks elkeid.com."""
        meeting = Meeting(tls.api_server_options(OURS), tls.client_options(OURS))
        self.assertTrue(meeting.works)
        self.assertEqual(meeting.server_tls.negotiatedProtocol, b"http/1.1")

    def test_every_dialled_name_has_the_same_check(self) -> None:
        """HTTP clients check elkeid.com whatever address they dial."""
        policy = tls.https_policy(OURS)
        for name in (b"127.0.0.1", b"10.1.2.3", b"gateway.example"):
            client = policy.creatorForNetloc(name, 6752)
            self.assertTrue(Meeting(tls.api_server_options(OURS), client).works, name)

    def test_servers_that_are_not_ours(self) -> None:
        """Our client leaves a server of another authority, and one without the name."""
        stranger = tls.api_server_options(STRANGERS)
        nameless = tls.api_server_options(server_issued("elkeid.org", NOW + DAY))
        for server, text in [(stranger, "verify failed"), (nameless, "not for elkeid.com")]:
            meeting = Meeting(server, tls.client_options(OURS))
            self.assertFalse(meeting.works)
            assert meeting.client.reason is not None
            self.assertIn(text, repr(meeting.client.reason.value))

    def test_client_that_offers_h2_and_http1(self) -> None:
        """A Go client, which offers h2 first, is served over HTTP/1.1."""
        client = tls.client_options(OURS)
        client._context.set_alpn_protos([b"h2", b"http/1.1"])
        meeting = Meeting(tls.api_server_options(OURS), client)
        self.assertTrue(meeting.works)
        self.assertEqual(meeting.client_tls.negotiatedProtocol, b"http/1.1")

    def test_two_authorities_are_trusted(self) -> None:
        """While one authority replaces another, servers of both are trusted."""
        both = evolve(OURS, ca_cert=STRANGERS.ca_cert + OURS.ca_cert)
        for server in (OURS, STRANGERS):
            self.assertTrue(Meeting(tls.api_server_options(server), tls.client_options(both)).works)

    def test_renewed(self) -> None:
        """Keys loaded again serve those who come; who is here notices nothing."""
        listener, client = tls.agent_listener_options(OURS), tls.agent_client_options(OURS)
        before = Meeting(listener, client)
        self.assertTrue(before.works)
        renewed = evolve(OURS, **_server_pair(*issued("elkeid.com", NOW + DAY)))
        listener.renew(renewed)
        after = Meeting(listener, client)
        self.assertTrue(after.works)
        self.assertNotEqual(_shown(before), _shown(after))
        assert before.client.transport is not None
        before.client.transport.write(b"again")
        before.pump.flush()
        self.assertIn(b"again", before.client.got)

    def test_authority_changed_in_two_steps(self) -> None:
        """While both are trusted, agents and servers of the old and of the new one meet."""
        both = OURS.ca_cert + STRANGERS.ca_cert
        listener = tls.agent_listener_options(OURS)
        listener.renew(evolve(OURS, ca_cert=both))
        client = tls.client_options(OURS)
        client.renew(evolve(OURS, ca_cert=both))
        agent = evolve(STRANGERS, ca_cert=both)
        self.assertTrue(Meeting(listener, tls.agent_client_options(agent)).works)
        self.assertTrue(Meeting(tls.api_server_options(STRANGERS), client).works)
        listener.renew(STRANGERS)
        self.assertTrue(Meeting(listener, tls.agent_client_options(agent)).works)
        self.assertFalse(Meeting(listener, tls.agent_client_options(OURS)).works)

    def test_keys_of_a_role_without_them(self) -> None:
        """Keys that were not loaded are named, not met as a fault inside OpenSSL."""
        bare = Keys(keys_dir=Path("keys"))
        for make, missing in [
            (tls.api_server_options, "server.crt"),
            (tls.agent_listener_options, "server.crt"),
            (tls.client_options, "ca.crt"),
            (tls.agent_client_options, "ca.crt"),
        ]:
            error = self.assertRaises(KeysError, make, bare)
            self.assertIn(missing, str(error))
