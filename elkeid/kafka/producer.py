"""The one module that reaches into kafka-python: encoded batches in, outcomes out.

The library keeps connections, metadata, authentication, its sender thread, producer ids, sequence
numbers and the retries of what a broker may still take. Replaced are three things:

- what it makes of single records (`_Records` carries a batch that is encoded already);
- its verdict on failed batches (`_Sender`): no batch is ever given up for its age, split by the
  library or failed with others; whatever is no plain retry is told to us, and we send it again;
- the order of what is sent: a partition is never given a batch of a class before the one before
  is acknowledged (`elkeid.kafka.bridge`), so nothing newer can overtake what failed.

tests/kafka/test_library.py fails when a release of the library changes what this relies on.
"""

from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Any, Final

import kafka.errors
from kafka.net.compat import KafkaNetClient
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.sender import Sender
from kafka.producer.transaction_manager import TransactionManager
from kafka.protocol.producer import ProduceRequest
from kafka.structs import TopicPartition

from elkeid.kafka.batches import Batch
from elkeid.kafka.connection import REQUEST_TIMEOUT_MS
from elkeid.wire.protobuf import varint

MAX_REQUEST_BYTES: Final = 4 << 20
"""Batches of several partitions in one request to a broker, which takes 100 MiB by default."""

BOOTSTRAP_MS: Final = 3_000
"""One attempt to reach any broker: TLS, SASL and metadata on a busy machine."""

METADATA_MAX_AGE_MS: Final = 60_000
"""New partitions are noticed so soon."""

RETRY_BACKOFF_MS: Final = 100
RECONNECT_BACKOFF_MAX_MS: Final = 2_000
"""A broker that is back is found so soon."""

_LAID_OUT: Final = 9
"""Version of produce requests, which brokers take since Kafka 2.4; later ones bring nothing."""
_OLDEST: Final = 3  # the first with record batches of version 2
_ACKS: Final = Struct(">Bhi")  # no transaction, acks, milliseconds
_NO_TAGS: Final = b"\0"
_Topic: Final = ProduceRequest.TopicProduceData

_FOREVER_MS: Final = 1 << 52  # as a delivery timeout: 140,000 years

Outcome = Callable[[BaseException | None], None]
"""Told once what became of a batch: None when it is acknowledged. Called in any thread."""


class _Records:
    """An encoded batch as the accumulator wants its records; see ``MemoryRecordsBuilder``."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self._header = batch, b""
        self.producer_id, self.producer_epoch, self.base_sequence = -1, -1, -1

    def append(self, *_: object) -> None:
        """Take no single record."""

    def is_full(self) -> bool:
        """Say that it can be sent at once."""
        return True

    def next_offset(self) -> int:
        """Number of records."""
        return self._batch.records

    def size_in_bytes(self) -> int:
        """Bytes on the wire."""
        return self._batch.size

    def set_producer_state(
        self, producer_id: int, epoch: int, sequence: int, transactional: bool
    ) -> None:
        """Take the numbers that make a retry recognisable, once."""
        assert not self._header
        assert not transactional
        self.producer_id, self.producer_epoch, self.base_sequence = producer_id, epoch, sequence

    def close(self) -> None:
        """Make the header, once: a retry has the same."""
        if not self._header:
            self._header = self._batch.header(
                self.producer_id, self.producer_epoch, self.base_sequence
            )

    def pieces(self) -> tuple[bytes, bytes]:
        """What goes on the wire."""
        return self._header, self._batch.body

    def buffer(self) -> bytes:
        """The same in one piece."""
        return self._header + self._batch.body


class _ProducerBatch(ProducerBatch):  # type: ignore[misc]
    """A batch that tells its outcome, and is never too old."""

    def __init__(self, partition: TopicPartition, batch: Batch, outcome: Outcome) -> None:
        super().__init__(partition, _Records(batch))
        self._outcome = outcome

    def has_reached_delivery_timeout(self, *_: object, **__: object) -> bool:
        """Never give a batch up."""
        return False

    def _complete_future(
        self, base_offset: int, timestamp_ms: int, record_exceptions_fn: Any
    ) -> None:
        super()._complete_future(base_offset, timestamp_ms, record_exceptions_fn)
        self._outcome(None if record_exceptions_fn is None else record_exceptions_fn(0))


class _Request(ProduceRequest, init=False):  # type: ignore[misc,call-arg]
    """A produce request whose records are copied once, from their batches to what is sent."""

    def encode(self, version: int | None = None, header: bool = False, framed: bool = False) -> Any:
        """See ``ApiMessage``; version 9 is laid out here, those of older brokers there."""
        if self.API_VERSION != _LAID_OUT or not (header and framed) or version is not None:
            for topic in self.topic_data:
                for each in topic.partition_data:
                    if isinstance(each.records, _Records):
                        each.records = each.records.buffer()
            return super().encode(version=version, header=header, framed=framed)
        parts = [b"", self._header.encode(flexible=True)]
        parts.append(_ACKS.pack(0, self.acks, self.timeout_ms) + varint(len(self.topic_data) + 1))
        for topic in self.topic_data:
            name = topic.name.encode()
            parts += (varint(len(name) + 1), name, varint(len(topic.partition_data) + 1))
            for each in topic.partition_data:
                front, body = each.records.pieces()
                length = varint(len(front) + len(body) + 1)
                parts += (each.index.to_bytes(4), length, front, body, _NO_TAGS)
            parts.append(_NO_TAGS)
        parts.append(_NO_TAGS)
        parts[0] = sum(map(len, parts)).to_bytes(4)
        return b"".join(parts)


class _Sender(Sender):  # type: ignore[misc]
    """The library's thread, with a verdict of ours on failed batches."""

    def __init__(self, *args: Any, retried: Callable[[], None], **named: Any) -> None:
        super().__init__(*args, **named)
        self._retried = retried

    def _dispatch_error(
        self, batch: ProducerBatch, exception: BaseException, partition_response: Any
    ) -> None:
        if self._can_retry(batch, type(exception)):
            super()._dispatch_error(batch, exception, partition_response)
            return
        manager = self._transaction_manager
        if isinstance(
            exception,
            (
                kafka.errors.OutOfOrderSequenceNumberError,
                kafka.errors.UnknownProducerIdError,
                kafka.errors.InvalidProducerEpochError,
            ),
        ):
            if manager.producer_id_and_epoch.match(batch):
                manager.bump_producer_id_and_epoch()
        elif isinstance(exception, kafka.errors.ClusterAuthorizationFailedError):
            manager.transition_to_fatal_error(exception)
        elif not manager.producer_id_and_epoch.match(batch):
            pass  # its numbers are of the past
        elif partition_response is not None and not batch.in_retry():
            # Refused outright and alone on its way: its numbers are free for the next batch.
            manager.set_sequence_number(batch.topic_partition, batch.base_sequence)
        else:
            # An attempt may have been taken: another batch of these numbers would pass for it.
            manager.bump_producer_id_and_epoch()
        if batch.complete_exceptionally(exception, lambda _: exception):
            self._maybe_remove_from_inflight_batches(batch)
            self._accumulator.deallocate(batch)
        if issubclass(type(exception), kafka.errors.InvalidMetadataError):
            self._metadata.request_update()
        self._accumulator.muted.discard(batch.topic_partition)

    def _can_split(self, batch: ProducerBatch, error: type) -> bool:
        return False

    def _record_retries(self, batch: ProducerBatch) -> None:
        self._retried()

    def _produce_request(
        self, node_id: int, acks: int, timeout: int, batches: Sequence[ProducerBatch]
    ) -> ProduceRequest:
        topics: dict[str, list[Any]] = {}
        for batch in batches:
            target = batch.topic_partition
            part = _Topic.PartitionProduceData(index=target.partition, records=batch.records)
            topics.setdefault(target.topic, []).append(part)
        return _Request(
            transactional_id=None,
            acks=acks,
            timeout_ms=timeout,
            topic_data=[_Topic(name=name, partition_data=parts) for name, parts in topics.items()],
            min_version=_OLDEST,
            max_version=_LAID_OUT,
        )


class BatchProducer:
    """An idempotent producer of encoded batches, ``acks=all``.

    Args:
        options: of the connection, see `elkeid.kafka.connection.connection_options`.
        topic: of all batches.
        retried: called in the library's thread for each batch that it sends again.

    Raises:
        kafka.errors.KafkaError: no broker could be reached or would have us; try again later.
        OSError: likewise.
        ValueError: likewise, for what the library says so of.
    """

    def __init__(self, options: Mapping[str, Any], topic: str, retried: Callable[[], None]) -> None:
        self._topic = topic
        common: dict[str, Any] = {
            **options,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
            "metadata_max_age_ms": METADATA_MAX_AGE_MS,
            "max_in_flight_requests_per_connection": 5,
        }
        client = KafkaNetClient(**common)
        manager = client._manager
        try:
            manager.bootstrap(BOOTSTRAP_MS)
            self._transactions = TransactionManager(
                retry_backoff_ms=RETRY_BACKOFF_MS,
                api_version=manager.broker_version,
                metadata=client.cluster,
            )
            self._accumulator = RecordAccumulator(
                transaction_manager=self._transactions,
                delivery_timeout_ms=_FOREVER_MS,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                retry_backoff_ms=RETRY_BACKOFF_MS,
            )
            self._cluster = client.cluster
            self._client = client
            self._sender = _Sender(
                client,
                client.cluster,
                self._accumulator,
                acks=-1,
                max_request_size=MAX_REQUEST_BYTES,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                retry_backoff_ms=RETRY_BACKOFF_MS,
                guarantee_message_order=True,
                transaction_manager=self._transactions,
                client_id=options["client_id"],
                retried=retried,
            )
        except BaseException:
            client.close()
            raise
        self._sender.daemon = True
        self._sender.start()
        self._sender.add_topic(topic)

    def partitions(self) -> int | None:
        """How many partitions the topic has; None while that is not known."""
        found = self._cluster.partitions_for_topic(self._topic)
        return len(found) if found else None

    def unauthorized(self) -> bool:
        """Whether the brokers refuse to tell us of the topic."""
        return self._topic in self._cluster.unauthorized_topics

    def has_leader(self, partition: int) -> bool:
        """Whether the partition has a leader, as far as is known."""
        leader = self._cluster.leader_for_partition(TopicPartition(self._topic, partition))
        return leader is not None and leader != -1

    def send(self, partition: int, batch: Batch, outcome: Outcome) -> None:
        """Hand one batch over; it goes out as soon as the partition's leader takes it."""
        target = TopicPartition(self._topic, partition)
        made = _ProducerBatch(target, batch, outcome)
        accumulator = self._accumulator
        with accumulator._tp_lock(target):
            accumulator._batches[target].append(made)
            accumulator._incomplete.add(made)

    def flush(self) -> None:
        """Have the thread look at what `send` has brought."""
        self._sender.wakeup()

    def fatal(self) -> BaseException | None:
        """Why this producer can send nothing any more; None while it can."""
        if self._transactions.has_fatal_error():
            error: BaseException | None = self._transactions.last_error
            return error or kafka.errors.KafkaError("unknown")
        if not self._sender.is_alive():
            ended: BaseException = kafka.errors.KafkaError("the client's thread has ended")
            return ended
        return None

    def authentication_problem(self) -> str | None:
        """What a broker said to our credentials last, if it would not have them."""
        failures = self._client._manager._auth_failures
        return str(next(iter(failures.values()))) if failures else None

    def close(self, seconds: float) -> None:
        """Send nothing more; what is not acknowledged is told as failed.

        Args:
            seconds: to wait for the thread's end.
        """
        self._sender.force_close()
        self._sender.join(seconds)
