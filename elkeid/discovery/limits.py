"""The registry's limits, for ``elkeid limits``."""

from elkeid.config import DiscoverySettings
from elkeid.discovery import api, registry, replication
from elkeid.limits import Limit
from elkeid.web import rates

ANSWERS = "elkeid_sd_http_api"
IGNORED = "elkeid_sd_ignored_events"


def limits(settings: DiscoverySettings) -> list[Limit]:
    """All of them, with the values that these settings give."""
    rows = [
        (
            "discovery.read_rate",
            settings.read_rate,
            "lookups/s and address",
            "a whole fleet may stand behind one address; ten times as many at once",
            "429",
            "elkeid_sd_rate_refused",
            "discovery/test_api.py::test_rates",
        ),
        (
            "discovery.write_rate",
            settings.write_rate,
            "signed requests/s and address",
            "a gateway sends less than one, a peer a few; ten times as many at once",
            "429",
            "elkeid_sd_rate_refused",
            "discovery/test_api.py::test_rates",
        ),
        (
            "rates.ADDRESSES",
            rates.ADDRESSES,
            "addresses",
            "about 2 MB",
            "the longest known start afresh",
            "elkeid_sd_rate_refused",
            "web/test_rates.py::test_bounded",
        ),
        (
            "registry.MAX_NAMES",
            registry.MAX_NAMES,
            "names",
            "a deployment has three",
            "503",
            ANSWERS,
            "discovery/test_api.py::test_full",
        ),
        (
            "registry.MAX_INSTANCES",
            registry.MAX_INSTANCES,
            "instances",
            "at most 50 MB with extras of full size",
            "503; from a peer: passed over",
            IGNORED,
            "discovery/test_registry.py::test_limits",
        ),
        (
            "registry.MAX_NAME",
            registry.MAX_NAME,
            "characters",
            "names in use have about ten",
            "400",
            ANSWERS,
            "discovery/test_registry.py::test_validation",
        ),
        (
            "registry.MAX_EXTRA",
            registry.MAX_EXTRA,
            "bytes of JSON",
            "ours has about 60",
            "400",
            ANSWERS,
            "discovery/test_api.py::test_bad_registrations",
        ),
        (
            "registry.MAX_TOMBSTONES",
            registry.MAX_TOMBSTONES,
            "evictions",
            "as many as instances",
            "the oldest are forgotten",
            IGNORED,
            "discovery/test_replication.py::test_tombstones_are_bounded",
        ),
        (
            "replication.OUTBOX",
            replication.OUTBOX,
            "instances a peer",
            "as many as a registry can know of",
            "the oldest are forgotten, digests find them",
            "elkeid_sd_peer_waiting",
            "discovery/test_replication.py::test_outbox_is_bounded",
        ),
        (
            "api.REGISTER_LIMIT",
            api.REGISTER_LIMIT,
            "bytes of a registration",
            "an extra of full size, generously escaped",
            "413",
            ANSWERS,
            "discovery/test_api.py::test_large_bodies",
        ),
        (
            "api.SYNC_LIMIT",
            api.SYNC_LIMIT,
            "bytes of a batch",
            "100 records of full size and more",
            "413",
            ANSWERS,
            "discovery/test_api.py::test_large_bodies",
        ),
        (
            "api.DIFFERENCE_LIMIT",
            api.DIFFERENCE_LIMIT,
            "bytes of what a peer knows",
            "20,000 instances with long names",
            "413",
            ANSWERS,
            "discovery/test_api.py::test_large_bodies",
        ),
    ]
    return [Limit(*row) for row in rows]
