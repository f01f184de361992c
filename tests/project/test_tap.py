"""Choosing roles, settings at start, and composition, on a reactor in memory."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from elkeid import process, tap
from elkeid.config import Settings
from elkeid.descriptors import Shares
from elkeid.errors import KeysError
from elkeid.keys import Keys, renew_server
from elkeid.lifecycle import OrderedRoles
from elkeid.workers import Worker


class Noting:
    """A role that notes its life in `story`."""

    name = "noting"
    story: ClassVar[list[str]] = []
    made_with: ClassVar[list[tuple[Settings, Keys, object]]] = []

    def __init__(self, settings: Settings, keys: Keys, reactor: object, shares: Shares) -> None:
        self.shares = shares
        self.made_with.append((settings, keys, reactor))

    async def start(self) -> None:
        """See `Role`."""
        self.story.append(f"{self.name} up")

    async def stop(self) -> None:
        """See `Role`."""
        self.story.append(f"{self.name} down")


class NotingSd(Noting):
    """Stands where the registry would."""

    name = "sd"


class NotingAc(Noting):
    """Stands where the gateway would; wants to know of other keys."""

    name = "ac"
    renewed_with: ClassVar[list[Keys]] = []

    def renew_keys(self, keys: Keys) -> None:
        """See `Role`."""
        self.renewed_with.append(keys)


class NotingManager(Noting):
    """Stands where the Manager would."""

    name = "manager"


class Failing(Noting):
    """A role that cannot start."""

    name = "failing"
    error: ClassVar[Exception] = KeysError("the log is locked; stop the other process")

    async def start(self) -> None:
        """See `Role`."""
        raise self.error


def place(kind: type) -> str:
    """The dotted name that `tap.ROLES` would hold for a class of this module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def start(service: OrderedRoles, reactor: Any) -> None:
    """Start a service as twistd does, then run the reactor."""
    service.startService()
    go(reactor)


def go(reactor: Any) -> None:
    """Run the reactor, as far as one in memory runs."""
    reactor.running = True
    for hook, args, kwargs in reactor.whenRunningHooks:
        hook(*args, **kwargs)


class TapTests(SynchronousTestCase):
    """What ``twistd elkeid`` does with its options."""

    def setUp(self) -> None:
        """A folder of its own, roles that only take notes, a process that is not this one."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        self.settings_file = self.folder / "elkeid.toml"
        self.settings_file.write_text("")
        del Noting.story[:], Noting.made_with[:], NotingAc.renewed_with[:]
        self.patch(
            tap,
            "ROLES",
            {"sd": place(NotingSd), "ac": place(NotingAc), "manager": place(NotingManager)},
        )
        self.told: list[str] = []
        self.patch(process, "tell_operator", self.told.append)
        self.patch(process, "fail_at_exit", lambda: self.told.append("status 1"))
        before = list(globalLogPublisher._observers)
        self.addCleanup(globalLogPublisher._observers.__setitem__, slice(None), before)

    def options(self, *argv: str) -> tap.Options:
        """Parsed options, with this test's settings file."""
        options = tap.Options()
        options.parseOptions(["--config", str(self.settings_file), *argv])
        return options

    def service(self, *argv: str) -> tuple[OrderedRoles, Any]:
        """The service that these options compose, and its reactor."""
        reactor = MemoryReactorClock()
        service = tap.makeService(self.options(*argv), reactor)
        assert isinstance(service, OrderedRoles)
        return service, reactor

    def test_keys_are_loaded_again(self) -> None:
        """SIGHUP gives roles what is on disk now; files that are at fault change nothing."""
        handler = signal.getsignal(signal.SIGHUP)
        service, reactor = self.service()
        reactor.callFromThread = partial(reactor.callLater, 0)
        start(service, reactor)
        before = Noting.made_with[0][1]
        folder = self.folder / "keys"
        (folder / "server.crt").rename(folder / "aside")
        os.kill(os.getpid(), signal.SIGHUP)
        reactor.advance(0)
        self.assertEqual(NotingAc.renewed_with, [])
        (folder / "aside").rename(folder / "server.crt")
        renew_server(self.options()["settings"])
        os.kill(os.getpid(), signal.SIGHUP)
        reactor.advance(0)
        (renewed,) = NotingAc.renewed_with  # of the one role that wants to know
        self.assertNotEqual(renewed.server_cert, before.server_cert)
        self.assertEqual(renewed.aksk, before.aksk)
        stopped = service.stopService()
        reactor.advance(10)
        self.successResultOf(stopped)
        self.assertIs(signal.getsignal(signal.SIGHUP), handler)

    def test_workers(self) -> None:
        """With --workers another role stands for the gateway; each worker is told its place."""
        options = self.options("--workers", "3")
        self.assertEqual(options.workers, 3)
        kind = tap._kind("ac", options)
        assert isinstance(kind, partial)
        self.assertEqual(kind.keywords["count"], 3)
        command = kind.keywords["command"]
        self.assertEqual(command[-4:], ["--role", "ac", "--config", str(self.settings_file)])
        self.assertIs(tap._kind("sd", options), NotingSd)
        worker = self.options("--role", "ac", "--worker", "1/3")
        kind = tap._kind("ac", worker)
        assert isinstance(kind, partial)
        self.assertIs(kind.func, NotingAc)
        self.assertEqual(kind.keywords, {"worker": Worker(1, 3)})
        self.assertEqual(worker["settings"].agentcenter.http_port, 6762)
        self.assertIs(tap._kind("ac", self.options("--workers", "1")), NotingAc)

    def test_workers_at_fault(self) -> None:
        """A number, the role, and ports that are free."""
        for argv in (
            ("--workers", "0"),
            ("--workers", "33"),
            ("--workers", "two"),
            ("--role", "sd", "--workers", "2"),
            ("--worker", "0/2"),
            ("--role", "ac", "--worker", "2/2"),
            ("--role", "ac", "--worker", "0/2", "--workers", "2"),
        ):
            with self.assertRaises(usage.UsageError, msg=argv):
                self.options(*argv)
        self.settings_file.write_text("[agentcenter]\nhttp_port = 6691\n")
        with self.assertRaisesRegex(SystemExit, "worker 1 would have HTTP port 6701"):
            self.options("--workers", "2")

    def test_nothing_happens_before_the_start(self) -> None:
        """Options and composition write nothing, open nothing and make no role."""
        _, reactor = self.service()
        self.assertEqual(Noting.made_with, [])
        self.assertEqual([path.name for path in self.folder.iterdir()], ["elkeid.toml"])
        self.assertEqual(reactor.tcpServers + reactor.sslServers + reactor.tcpClients, [])
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_nothing_starts_before_the_reactor_runs(self) -> None:
        """What starts can be stopped in order: before signals are caught nothing does."""
        service, reactor = self.service()
        service.startService()
        self.assertEqual(Noting.story, [])
        self.assertEqual([path.name for path in self.folder.iterdir()], ["elkeid.toml"])
        go(reactor)
        self.assertEqual(Noting.story, ["sd up", "ac up", "manager up"])

    def test_all_roles_by_default(self) -> None:
        """Without --role all run: registry, gateway, Manager; they stop in reverse."""
        service, reactor = self.service()
        start(service, reactor)
        self.assertEqual(Noting.story, ["sd up", "ac up", "manager up"])
        self.successResultOf(service.stopService())
        self.assertEqual(Noting.story[3:], ["manager down", "ac down", "sd down"])
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_chosen_roles_in_start_order(self) -> None:
        """Only chosen roles run, in start order whatever the order on the command line."""
        service, reactor = self.service("--role", "manager", "--role=sd", "--role=sd")
        start(service, reactor)
        self.assertEqual(Noting.story, ["sd up", "manager up"])

    def test_first_start_makes_keys_for_all_roles(self) -> None:
        """Keys are made at the first start, before any role; every role gets the same."""
        service, reactor = self.service()
        start(service, reactor)
        self.assertTrue((self.folder / "keys" / "ca.key").is_file())
        ((settings, keys, its_reactor), *others) = Noting.made_with
        self.assertEqual(settings.server.keys_dir, self.folder.resolve() / "keys")
        self.assertEqual(keys.keys_dir, settings.server.keys_dir)
        self.assertIs(its_reactor, reactor)
        self.assertTrue(all(other == (settings, keys, reactor) for other in others))
        start(*self.service())
        self.assertEqual(Noting.made_with[-1][1], keys)

    def test_one_role_without_its_keys(self) -> None:
        """A gateway on a machine of its own refuses to start without keys, and says how on."""
        self.settings_file.write_text(
            '[server]\nadvertise = "192.0.2.1"\n[discovery]\nmembers = ["192.0.2.2:8088"]\n'
        )
        service, reactor = self.service("--role=ac")
        start(service, reactor)
        self.assertEqual(Noting.made_with, [])
        self.assertFalse((self.folder / "keys").exists())
        (sentence, status) = self.told
        self.assertIn("ca.crt is missing", sentence)
        self.assertIn("elkeid keys export ac", sentence)
        self.assertEqual(status, "status 1")
        self.assertTrue(reactor.hasStopped)

    def test_known_start_fault(self) -> None:
        """A known fault of a role is one sentence and status 1; the others were stopped."""
        self.patch(tap, "ROLES", {**tap.ROLES, "manager": place(Failing)})
        service, reactor = self.service()
        start(service, reactor)
        self.assertEqual(self.told, ["the log is locked; stop the other process", "status 1"])
        self.assertEqual(Noting.story, ["sd up", "ac up", "failing down", "ac down", "sd down"])

    def test_unknown_start_fault(self) -> None:
        """A bug at start is named on the terminal, and its traceback is in the log."""
        self.patch(tap, "ROLES", {**tap.ROLES, "manager": place(Failing)})
        self.patch(Failing, "error", ZeroDivisionError("by zero"))
        service, reactor = self.service()
        start(service, reactor)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(
            self.told,
            ["start failed: ZeroDivisionError: by zero; the log has the traceback", "status 1"],
        )

    def test_stop_has_a_last_deadline(self) -> None:
        """From the moment it is told to stop, the process has a deadline."""
        service, reactor = self.service()
        start(service, reactor)
        self.assertEqual(
            reactor.triggers["before"]["shutdown"],
            [(process.end_by, (), {}), (process.stop_once, (), {})],
        )

    def test_unknown_role(self) -> None:
        """A role that does not exist, or not yet, is refused with those that do."""
        for role, text in [("gateway", "not one of sd, ac, manager"), ("analysis", "not in this")]:
            error = self.assertRaises(usage.UsageError, self.options, "--role", role)
            self.assertIn(text, str(error))
            self.assertIn("ac", str(error))

    def test_every_fault_in_the_settings(self) -> None:
        """All faults are told at once, one a line, and end the program with status 1."""
        self.settings_file.write_text(
            "[agentcenter]\ngrpc_port = 0\ncolour = 1\n[manager]\nport = true\n[nowhere]\n"
        )
        error = self.assertRaises(SystemExit, self.options)
        self.assertEqual(
            str(error.code).splitlines(),
            [
                "nowhere: unknown section",
                "agentcenter.colour: unknown setting",
                "agentcenter.grpc_port: must be a whole number, 1 to 65535",
                "manager.port: must be a whole number, 1 to 65535",
            ],
        )

    def test_missing_settings_file(self) -> None:
        """A settings file that was named must be there."""
        self.settings_file.unlink()
        error = self.assertRaises(SystemExit, self.options)
        self.assertIn("No such file", str(error.code))

    def test_settings_of_the_working_directory(self) -> None:
        """Without --config, elkeid.toml of the working directory counts, if there is one."""
        self.settings_file.write_text("[manager]\nport = 7701\n")
        for folder, port in [(self.folder, "7701"), (self.folder / "empty", "6701")]:
            folder.mkdir(exist_ok=True)
            code = (
                "from elkeid.tap import Options; o = Options(); o.parseOptions([]);"
                "print(o['settings'].manager.port, o['settings'].server.data_dir)"
            )
            shown = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
            )
            self.assertEqual(shown.stdout.split(), [port, str(folder.resolve() / "data")])


class PluginTests(SynchronousTestCase):
    """What twistd sees of us before it runs us."""

    def run_python(self, code: str) -> str:
        """What ``code`` prints in an interpreter of its own."""
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def test_listing_plugins_imports_nothing_of_ours(self) -> None:
        """``twistd --help`` finds the plugin by its name, without loading the package."""
        code = (
            "import sys\n"
            "from twisted.application.service import IServiceMaker\n"
            "from twisted.plugin import getPlugins\n"
            "found = [p for p in getPlugins(IServiceMaker) if p.tapname == 'elkeid']\n"
            "print(len(found), [n for n in sys.modules if n.split('.')[0] == 'elkeid'])\n"
        )
        self.assertEqual(self.run_python(code), "1 []")

    def test_a_role_is_imported_only_if_it_runs(self) -> None:
        """Composing one role does not load the others."""
        code = (
            "import sys\n"
            "from twisted.internet.testing import MemoryReactorClock\n"
            "from elkeid.tap import Options, makeService\n"
            "options = Options(); options.parseOptions(['--role=sd'])\n"
            "makeService(options, MemoryReactorClock())\n"
            "print([n for n in ('discovery', 'agentcenter', 'manager')"
            " if 'elkeid.' + n + '.service' in sys.modules])\n"
        )
        self.assertEqual(self.run_python(code), "['discovery']")
