"""Serve the gateway's HTTP/2 state over plain TCP on a free port of 127.0.0.1; print the port."""

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IAddress, IListeningPort, ITCPTransport
from twisted.internet.protocol import Factory, Protocol

from elkeid.wire.grpc import (
    CallStarted,
    ConnectionEnded,
    ConnectionLimits,
    GrpcServerConnection,
    HalfClosed,
    Status,
)

LIMITS = ConnectionLimits()


class Wire(Protocol):
    """Moves bytes; answers calls as soon as they are half-closed."""

    transport: ITCPTransport

    def __init__(self) -> None:
        self.grpc = GrpcServerConnection(LIMITS, ("/grpc.Transfer/Transfer",))

    def connectionMade(self) -> None:
        """Greet at once."""
        self.transport.write(self.grpc.data_to_send())

    def dataReceived(self, data: bytes) -> None:
        """Answer what has come."""
        over = False
        for event in self.grpc.receive_data(data):
            if isinstance(event, CallStarted):
                self.grpc.send_message(event.stream_id, b"hello", compressed=False)
            elif isinstance(event, HalfClosed):
                self.grpc.end_call(event.stream_id, Status.OK)
            over = over or isinstance(event, ConnectionEnded)
        self.transport.write(self.grpc.data_to_send())
        if over:
            self.transport.loseConnection()


class Wires(Factory):
    """Makes one state for each connection."""

    def buildProtocol(self, addr: IAddress | None) -> Wire:
        """Serve one connection."""
        return Wire()


def listening(port: IListeningPort) -> None:
    """Tell where."""
    print(port.getHost().port, flush=True)


if __name__ == "__main__":
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    endpoint.listen(Wires()).addCallback(listening)
    reactor.run()
