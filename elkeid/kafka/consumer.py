"""Reading a topic: batches of raw messages off the reactor thread, committed when done with."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import kafka.codec
import kafka.errors
import kafka.record.default_records
from kafka import KafkaConsumer
from kafka.structs import OffsetAndMetadata, TopicPartition

from elkeid.config import KafkaSettings
from elkeid.errors import OperatorError
from elkeid.kafka.compression import decompress
from elkeid.kafka.connection import REQUEST_TIMEOUT_MS, connection_options, quiet_library

T = TypeVar("T")

POLL_MS: Final = 500
"""Longest wait for a batch, so that a stop is heard."""

BATCH_MESSAGES: Final = 2000
"""Most messages given at once: some megabytes."""


class Message(NamedTuple):
    """One message as the topic has it."""

    partition: int
    offset: int
    timestamp: int  # milliseconds since the epoch, -1 if it has none
    key: bytes | None
    value: bytes


def teach_codecs() -> None:
    """Let kafka-python decompress with the libraries that we have anyway."""
    records: Any = kafka.record.default_records
    for name, attribute in (("snappy", 2), ("lz4", 3), ("zstd", 4)):
        setattr(kafka.codec, f"has_{name}", lambda: True)
        setattr(records, f"{name}_decode", _decoder(attribute))


def _decoder(attribute: int) -> Callable[[bytes], bytes]:
    return lambda data: decompress(attribute, bytes(data))


class Consumer:
    """Reads a topic in one thread: `run` in a program, `start` and `stop` beside a reactor.

    Args:
        settings: section ``[kafka]``, with brokers.
        group: whose place to begin at and to move; None: from the oldest message, no place kept.
        take: given each batch, in the consumer's thread; when it returns, the batch is
            committed. An error of it ends the consumer, and the batch comes again.
        batch_messages: most messages of a batch.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        group: str | None,
        take: Callable[[Sequence[Message]], object],
        batch_messages: int = BATCH_MESSAGES,
    ) -> None:
        self._settings, self._group, self._take = settings, group, take
        self._most = batch_messages
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.failed: BaseException | None = None  # what ended it, if nobody stopped it

    def start(self) -> None:
        """Begin in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="kafka-consumer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self.failed = error

    def stop(self, seconds: float) -> bool:
        """End after the batch in hand. Blocking, from another thread.

        Args:
            seconds: to wait at most.

        Returns:
            Whether the thread has ended.
        """
        self._stopping = True
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def run(self, until: Mapping[int, int] | None = None) -> None:
        """Consume in this thread until stopped.

        Args:
            until: partition -> offset at which to end there; None: go on for ever.

        Raises:
            OperatorError: the brokers cannot be reached or do not have the topic.
        """
        consumer = self._connect()
        try:
            for batch in self._batches(consumer, until):
                self._take(batch)
                if self._group is not None:
                    consumer.commit(_after(self._settings.topic, batch))
        except kafka.errors.KafkaError as error:
            raise _in_a_sentence(self._settings, error) from error
        finally:
            consumer.close()

    def end_offsets(self) -> dict[int, int]:
        """Where each partition ends now: partition -> offset of the next message.

        Raises:
            OperatorError: the brokers cannot be reached or do not have the topic.
        """
        consumer = self._connect(subscribe=False)
        try:
            return {each.partition: end for each, end in _ends(consumer, self._settings).items()}
        except kafka.errors.KafkaError as error:
            raise _in_a_sentence(self._settings, error) from error
        finally:
            consumer.close()

    def _connect(self, subscribe: bool = True) -> KafkaConsumer:
        quiet_library()
        teach_codecs()
        topic = self._settings.topic
        try:
            consumer = KafkaConsumer(
                **connection_options(self._settings),
                group_id=self._group,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                request_timeout_ms=REQUEST_TIMEOUT_MS * 2,
                max_poll_records=self._most,
                bootstrap_timeout_ms=REQUEST_TIMEOUT_MS,
            )
            if subscribe and self._group is not None:
                consumer.subscribe([topic])
            elif subscribe:
                consumer.assign(list(_ends(consumer, self._settings)))
        except (kafka.errors.KafkaError, OSError) as error:
            raise _in_a_sentence(self._settings, error) from error
        return consumer

    def _batches(
        self, consumer: KafkaConsumer, until: Mapping[int, int] | None
    ) -> Iterator[list[Message]]:
        topic = self._settings.topic
        while not self._stopping:
            found = consumer.poll(timeout_ms=POLL_MS, max_records=self._most)
            batch = [
                Message(each.partition, each.offset, each.timestamp, each.key, each.value)
                for messages in found.values()
                for each in messages
                if until is None or each.offset < until.get(each.partition, 0)
            ]
            if batch:
                yield batch
            if until is not None and _reached(consumer, topic, until):
                return


def _ends(consumer: KafkaConsumer, settings: KafkaSettings) -> dict[TopicPartition, int]:
    topic = settings.topic
    partitions = consumer.partitions_for_topic(topic)
    if not partitions:
        raise OperatorError(f"topic {topic} does not exist: create it, or set kafka.topic")
    ends: dict[TopicPartition, int] = consumer.end_offsets(
        [TopicPartition(topic, each) for each in sorted(partitions)]
    )
    return ends


def _reached(consumer: KafkaConsumer, topic: str, until: Mapping[int, int]) -> bool:
    """Whether every partition that this consumer has stands at its end."""
    assigned = consumer.assignment()
    return bool(assigned) and all(
        consumer.position(each) >= until.get(each.partition, 0) for each in assigned
    )


def _after(topic: str, batch: Sequence[Message]) -> dict[TopicPartition, OffsetAndMetadata]:
    ends: dict[int, int] = {}
    for message in batch:
        ends[message.partition] = max(ends.get(message.partition, 0), message.offset + 1)
    return {
        TopicPartition(topic, partition): OffsetAndMetadata(end, "", -1)
        for partition, end in ends.items()
    }


def _in_a_sentence(settings: KafkaSettings, error: BaseException) -> OperatorError:
    return OperatorError(
        f"kafka.brokers {', '.join(settings.brokers)}: {type(error).__name__}: {error}; "
        "start the brokers, or correct section [kafka]"
    )
