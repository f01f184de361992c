"""What `elkeid.kafka.producer` relies on inside kafka-python: fails when a release changes it."""

import inspect
from collections import deque
from hashlib import sha256
from typing import Any

import kafka.errors
import pytest
from kafka.cluster import ClusterMetadata
from kafka.net.compat import KafkaNetClient
from kafka.producer.producer_batch import FinalState, ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.sender import Sender
from kafka.producer.transaction_manager import (
    ProducerIdAndEpoch,
    TransactionManager,
    TransactionState,
)
from kafka.protocol.api_message import ApiMessage
from kafka.protocol.parser import KafkaProtocol
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.structs import TopicPartition

from elkeid.kafka.batches import encode
from elkeid.kafka.producer import _ProducerBatch, _Records, _Sender
from tests.kafka.test_batches import entry

RELIED_ON: dict[Any, str] = {
    KafkaNetClient.__init__: "9d5a78ad19c3",
    KafkaNetClient.close: "b787785b1881",
    ProducerBatch.__init__: "cd85ffe5dd62",
    ProducerBatch.abort: "b9ded9f3fdb5",
    ProducerBatch.done: "29a093380e0c",
    ProducerBatch._complete_future: "9270795c3676",
    ProducerBatch.retry: "d8dcedd199e6",
    RecordAccumulator.__init__: "b1ee140b78ea",
    RecordAccumulator.ready: "cab587660dbe",
    RecordAccumulator.drain_batches_for_one_node: "dbdb5e022752",
    RecordAccumulator.reenqueue: "daef9963772b",
    RecordAccumulator.expired_batches: "8a1edc169257",
    RecordAccumulator.abort_batches: "eed2b87cc20e",
    RecordAccumulator._tp_lock: "bf6b826e7229",
    Sender.__init__: "4d28c2c73cbc",
    Sender.run: "58a7e71ecb8b",
    Sender.run_once: "91bf02ab61c2",
    Sender.force_close: "7963a0d23bc9",
    Sender._send_producer_data: "35ed0cfde943",
    Sender._create_produce_requests: "2a25b97db861",
    Sender._produce_request: "d2085792c451",
    KafkaProtocol.send_request: "ad512b973d99",
    ApiMessage.encode: "ccde93df5a9e",
    Sender._complete_batch: "6fa3de760946",
    Sender._complete_batch_with_exception: "5b3ea4f38cab",
    Sender._dispatch_error: "4019d9d8c84a",
    Sender._can_retry: "300beb74502b",
    Sender._handle_produce_response: "18e64f5850e3",
    Sender._failed_produce: "970cb5fc87ce",
    Sender._get_expired_inflight_batches: "3190ca59dd26",
    TransactionManager.bump_producer_id_and_epoch: "372770b64175",
    TransactionManager.increment_sequence_number: "e7f5f40bf90a",
    TransactionManager.set_sequence_number: "cb1d712406e7",
    TransactionManager.transition_to_fatal_error: "8d5bdb33adf6",
}

TARGET = TopicPartition("hids_svr", 0)


def digest(function: Any) -> str:
    """Of a function's text."""
    return sha256(inspect.getsource(function).encode()).hexdigest()[:12]


class Client:
    """The connections, of which only the metadata are asked."""

    def __init__(self) -> None:
        self.cluster = ClusterMetadata(bootstrap_servers=["127.0.0.1:1"])
        self.cluster._wakeup = lambda: None
        self.cluster.request_update = lambda: None


def made(retries: list[int]) -> tuple[_Sender, RecordAccumulator, TransactionManager]:
    """A sender that is not started, with producer id 7."""
    transactions = TransactionManager(api_version=(4, 1))
    transactions.init_producer_id()
    transactions._pending_requests.clear()
    transactions.set_producer_id_and_epoch(ProducerIdAndEpoch(7, 0))
    transactions._transition_to(TransactionState.READY)
    accumulator = RecordAccumulator(transaction_manager=transactions)
    client = Client()
    sender = _Sender(
        client,
        client.cluster,
        accumulator,
        acks=-1,
        guarantee_message_order=True,
        transaction_manager=transactions,
        retried=lambda: retries.append(1),
    )
    return sender, accumulator, transactions


def drained(
    sender: _Sender, accumulator: RecordAccumulator, outcomes: list[BaseException | None]
) -> ProducerBatch:
    """A batch that is on its way."""
    batch = encode(deque([entry(b"a", b"1", b"2")]), 1 << 20, 100, "none")
    ours = _ProducerBatch(TARGET, batch, outcomes.append)
    accumulator._batches[TARGET].append(ours)
    accumulator._incomplete.add(ours)
    sender._metadata.partitions_for_broker = lambda _node: {TARGET}
    (got,) = accumulator.drain_batches_for_one_node(sender._metadata, 0, 1 << 20)
    assert got is ours
    return got


class Response:
    """What a broker says of one batch."""

    def __init__(self, error_code: int) -> None:
        self.error_code, self.base_offset, self.log_append_time_ms = error_code, 5, -1
        self.log_start_offset, self.error_message, self.record_errors = -1, None, ()


def test_our_records_are_taken_for_the_library_s() -> None:
    """A batch on its way has producer id, epoch and sequence number, and the next one follows."""
    sender, accumulator, transactions = made([])
    outcomes: list[BaseException | None] = []
    batch = drained(sender, accumulator, outcomes)
    (read,) = MemoryRecords(bytes(batch.records.buffer()))
    assert (read.producer_id, read.producer_epoch, read.base_sequence) == (7, 0, 0)
    assert read.validate_crc()
    assert transactions.sequence_number(TARGET) == 2
    sender._complete_batch(batch, Response(0))
    assert outcomes == [None]
    assert batch.final_state is FinalState.SUCCEEDED
    assert not accumulator.has_incomplete
    assert drained(sender, accumulator, outcomes).base_sequence == 2


def test_lost_connections_are_retried_under_the_same_numbers() -> None:
    """The library repeats such a batch, at the front, however old it is."""
    retries: list[int] = []
    sender, accumulator, _ = made(retries)
    outcomes: list[BaseException | None] = []
    batch = drained(sender, accumulator, outcomes)
    batch.created -= 1e9
    sender._failed_produce([batch], 0, kafka.errors.KafkaConnectionError("gone"))
    assert outcomes == []
    assert retries == [1]
    assert list(accumulator._batches[TARGET]) == [batch]
    assert batch.base_sequence == 0
    assert batch.in_retry()


@pytest.mark.parametrize("code", [10, 18, 87, 32, 29])
def test_refusals_leave_their_numbers_free(code: int) -> None:
    """A batch that is refused outright fails alone; its sequence numbers go to the next one."""
    sender, accumulator, transactions = made([])
    outcomes: list[BaseException | None] = []
    sender._complete_batch(drained(sender, accumulator, outcomes), Response(code))
    assert isinstance(outcomes[0], kafka.errors.for_code(code))
    assert transactions.sequence_number(TARGET) == 0
    assert not transactions.has_fatal_error()
    assert not accumulator.has_incomplete


def test_unknown_producers_get_a_new_epoch() -> None:
    """A broker that lost track costs the batch its numbers, and us no record."""
    sender, accumulator, transactions = made([])
    outcomes: list[BaseException | None] = []
    sender._complete_batch(drained(sender, accumulator, outcomes), Response(45))
    assert isinstance(outcomes[0], kafka.errors.OutOfOrderSequenceNumberError)
    assert transactions.is_bumping_epoch()
    assert not transactions.has_fatal_error()


def test_no_permission_for_idempotence_is_fatal() -> None:
    """Then a new producer is needed, which is made when permission may have come."""
    sender, accumulator, transactions = made([])
    outcomes: list[BaseException | None] = []
    sender._complete_batch(drained(sender, accumulator, outcomes), Response(31))
    assert isinstance(outcomes[0], kafka.errors.ClusterAuthorizationFailedError)
    assert transactions.has_fatal_error()


def test_records_have_what_the_library_s_have() -> None:
    """Whatever the accumulator or the sender may ask of records, ours answer."""
    asked = {"append", "is_full", "next_offset", "size_in_bytes", "set_producer_state", "close"}
    for name in asked | {"buffer"}:
        theirs = inspect.signature(getattr(MemoryRecordsBuilder, name))
        assert callable(getattr(_Records, name))
        assert theirs is not None


def test_library_is_as_it_was_read() -> None:
    """Read what has changed, see that `elkeid.kafka.producer` still holds, then note it here."""
    changed = {
        function.__qualname__: digest(function)
        for function, known in RELIED_ON.items()
        if digest(function) != known
    }
    assert changed == {}


@pytest.mark.parametrize("version", [3, 8, 9])
def test_requests_are_laid_out_as_the_library_does(version: int) -> None:
    """A produce request of ours has the bytes of the library's own, whatever the broker takes."""
    sender, accumulator, _ = made([])
    batch = drained(sender, accumulator, [])
    ours = sender._produce_request(0, -1, 15_000, [batch])
    whole = batch.records.buffer()
    assert len(whole) == batch.records.size_in_bytes()
    theirs = Sender._produce_request(sender, 0, -1, 15_000, [batch])
    for each in (ours, theirs):
        each.API_VERSION = version
        each.with_header(correlation_id=77, client_id="elkeid")
        assert each.expect_response()
    assert ours.encode(framed=True, header=True) == theirs.encode(framed=True, header=True)
    assert whole in ours.encode(framed=True, header=True)
