"""The Manager's limits on what users and listeners may cost, for ``elkeid limits``."""

from elkeid.config import ManagerSettings
from elkeid.limits import Limit
from elkeid.manager import audit, claim_watch, live, logins, passwords, refusals, throttle
from elkeid.manager.store import filtersql, store, task_lists, tokens, users

LISTENERS = "elkeid_manager_live_listeners"
MISSED = "elkeid_manager_live_missed_total"
ANSWERS = "elkeid_manager_answers"
CLAIMS = "elkeid_manager_claims_total"
LOGINS = "elkeid_manager_logins"
AUDIT = "elkeid_manager_audit"
RESULTS = "elkeid_manager_results"


def limits(settings: ManagerSettings) -> list[Limit]:
    """All of them, with the values that these settings give."""
    return [*_of_users(settings), *_of_listeners(), *_of_claims(), _of_lines()]


def _of_users(settings: ManagerSettings) -> list[Limit]:
    rows = [
        (
            "manager.login_tries",
            settings.login_tries,
            "failed logins of a user from an address",
            "people mistype; guessing takes thousands",
            "code 21 for a minute, twice as long after each one more",
            LOGINS,
            "test_logins.py::test_waits_grow",
        ),
        (
            "manager.lockout_seconds",
            settings.lockout_seconds,
            "seconds of the longest wait",
            "100 guesses a day, and nobody is locked out for a day",
            "code 21",
            LOGINS,
            "test_logins.py::test_waits_grow",
        ),
        (
            "throttle.CAPTCHA_TRIES",
            throttle.CAPTCHA_TRIES,
            "failed logins from an address, or of a user",
            "many operators may sit behind one address",
            "code 19 until a challenge is solved",
            LOGINS,
            "test_logins.py::test_work_instead_of_a_lock",
        ),
        (
            "throttle.USER_TRIES",
            throttle.USER_TRIES,
            "failed logins of a user from everywhere",
            "a flood from many addresses",
            "code 21, but for addresses from which the user has logged in",
            LOGINS,
            "test_logins.py::test_no_lockout_from_elsewhere",
        ),
        (
            "task_lists.PAGE_BYTES",
            task_lists.PAGE_BYTES,
            "bytes that tasks and selections take in one page",
            "a page of common tasks is a hundredth of it; some are megabytes each",
            "what does not fit is named in left_out",
            ANSWERS,
            "test_task_lists.py::test_what_does_not_fit_into_a_page",
        ),
        (
            "passwords.WAITING_LIMIT",
            passwords.WAITING_LIMIT,
            "passwords that wait for their check",
            "ten seconds' worth",
            "503",
            ANSWERS,
            "test_owasp.py::test_a_flood_of_logins",
        ),
        (
            "logins.CHECKS_PER_ADDRESS",
            logins.CHECKS_PER_ADDRESS,
            "of them from one address",
            "a flood from there holds others up by two seconds at most",
            "503",
            ANSWERS,
            "test_logins.py::test_a_flood_from_one_address",
        ),
        (
            "store.SEARCHES_LIMIT",
            store.SEARCHES_LIMIT,
            "filters in progress or waiting, two at once",
            "others' reads keep a connection of their own",
            "503",
            ANSWERS,
            "test_store.py::test_searches_leave_a_reader_free",
        ),
        (
            "store.SEARCHES_PER_USER",
            store.SEARCHES_PER_USER,
            "of them for one user",
            "others find places beside whoever asks for as many as there are",
            "503",
            ANSWERS,
            "test_owasp.py::test_searches_of_one_user",
        ),
        (
            "filtersql.PARAMETERS",
            filtersql.PARAMETERS,
            "parameters of a filter in SQL",
            "names with several dots, or with numbers, take many for each rule",
            "400",
            ANSWERS,
            "test_filter.py::test_rules_that_are_too_much_together",
        ),
        (
            "tokens.TOKENS_PER_USER",
            tokens.TOKENS_PER_USER,
            "tokens of a user",
            "a client may log in for every call",
            "the one that would end first ends",
            LOGINS,
            "test_store.py::test_tokens_of_one_user_are_bounded",
        ),
        (
            "users.ADDRESSES_PER_USER",
            users.ADDRESSES_PER_USER,
            "known addresses of a user",
            "places of work",
            "the longest unused is forgotten",
            LOGINS,
            "test_logins.py::test_known_addresses_are_bounded",
        ),
        (
            "manager.change_rate",
            settings.change_rate,
            "changes of a user a second, and manager.change_burst at once",
            "each is kept in the audit log for years; people need fewer",
            "503, code 7, and not carried out",
            AUDIT,
            "test_audit.py::test_a_flood_of_changes",
        ),
        (
            "audit.SPARE_BURST",
            audit.SPARE_BURST,
            "of these for each token whose user is at the limit, then one a minute",
            "a stolen token that spends all must not keep its user from ending it",
            "503, code 7, and not carried out",
            AUDIT,
            "test_audit.py::test_a_flood_of_changes",
        ),
        (
            "audit.REFUSED_BURST",
            audit.REFUSED_BURST,
            "refused calls of a user written down at once, then one a second",
            "somebody who tries doors fills no disk",
            "refused all the same, but only counted",
            AUDIT,
            "test_audit.py::test_a_flood_of_refusals",
        ),
        (
            "logins.TURNED_AWAY_BURST",
            logins.TURNED_AWAY_BURST,
            "logins that wait, by address, written down at once, then one in 5 s",
            "they cost no check of a password, so they may be many",
            "refused all the same, but only counted",
            AUDIT,
            "test_logins.py::test_a_flood_that_waits",
        ),
        (
            "audit.BODY_CHARACTERS",
            audit.BODY_CHARACTERS,
            "characters of a body in the audit log",
            "what people write is shorter",
            "the begin and a hash are kept",
            AUDIT,
            "test_audit.py::test_sizes",
        ),
        (
            "audit.PARSED_BYTES",
            audit.PARSED_BYTES,
            "bytes of a body that is looked through for the audit log",
            "some milliseconds",
            "size and hash are kept",
            AUDIT,
            "test_audit.py::test_sizes",
        ),
    ]
    return [
        Limit(name, value, unit, reason, answer, metric, f"manager/{test}")
        for name, value, unit, reason, answer, metric, test in rows
    ]


def _of_listeners() -> list[Limit]:
    rows = [
        (
            "live.LISTENERS",
            live.LISTENERS,
            "listeners of the live feed",
            "with full queues and buffers they take some 70 MB",
            "503; close code 4503",
            LISTENERS,
            "test_limits",
        ),
        (
            "live.USER_LISTENERS",
            live.USER_LISTENERS,
            "of these of one user",
            "more are forgotten windows, or somebody keeps others out",
            "503; close code 4503",
            LISTENERS,
            "test_one_user",
        ),
        (
            "live.STRANGERS",
            live.STRANGERS,
            "connections whose token has not come",
            "they need none to be there",
            "503",
            ANSWERS,
            "test_strangers",
        ),
        (
            "live.QUEUE_EVENTS",
            live.QUEUE_EVENTS,
            "events kept for a slow listener",
            "what a fleet of 10,000 says in some seconds",
            "the oldest are dropped, their number is told",
            MISSED,
            "test_slow",
        ),
        (
            "live.QUEUE_BYTES",
            live.QUEUE_BYTES,
            "bytes of these",
            "events have some 150 bytes",
            "the oldest are dropped, their number is told",
            MISSED,
            "test_bounds",
        ),
        (
            "live.TOKEN_SECONDS",
            live.TOKEN_SECONDS,
            "seconds for the message with the token",
            "a connection without one is of no use",
            "close code 4401",
            LISTENERS,
            "test_no_token_in_time",
        ),
        (
            "live.MESSAGE_BYTES",
            live.MESSAGE_BYTES,
            "bytes of what a listener may send",
            "its token, once",
            "close code 1009",
            LISTENERS,
            "test_listeners_may_not_talk",
        ),
    ]
    return [
        Limit(name, value, unit, reason, answer, metric, f"manager/test_live.py::{test}")
        for name, value, unit, reason, answer, metric, test in rows
    ]


def _of_claims() -> list[Limit]:
    rows = [
        (
            "claim_watch.DISPUTES",
            claim_watch.DISPUTES,
            "claims that wait for a sign of life of another stream",
            "one gateway's agents, if all of them moved behind another address",
            "the report is left out until the next one",
            CLAIMS,
            "test_too_many_disputes",
        ),
        (
            "claim_watch.DISPUTE_BYTES",
            claim_watch.DISPUTE_BYTES,
            "bytes of their reports",
            "an agent's has some 4 KiB",
            "the report is left out until the next one",
            CLAIMS,
            "test_too_many_disputes",
        ),
    ]
    return [
        Limit(name, value, unit, reason, answer, metric, f"manager/test_claims.py::{test}")
        for name, value, unit, reason, answer, metric, test in rows
    ]


def _of_lines() -> Limit:
    return Limit(
        "refusals.LINE_SECONDS",
        refusals.LINE_SECONDS,
        "seconds between log lines on refused results",
        "hosts choose what they report",
        "the next line has the sums",
        RESULTS,
        "manager/test_refusals.py::test_one_line_a_minute",
    )
