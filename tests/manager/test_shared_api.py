"""Files that agents upload: taken from AgentCenters, bounded, given to operators."""

from hashlib import md5
from io import BytesIO
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import shared_api
from elkeid.manager.store.uploads import uploads_bytes
from elkeid.web.bodies import BodyRoom
from elkeid.web.client import Credentials, Reply
from elkeid.web.multipart import boundary_of, read_form
from elkeid.web.refusals import ParameterInvalid
from tests.web.memory import NOW, RawConnection

from .deployment import AK, SK, Deployment

UPLOAD = "/api/v6/shared/Upload"
DOWNLOAD = "/api/v6/shared/Download/"
BOUNDARY = "5f1e0c0d9a"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(content: bytes | None, said: str | None, file_first: bool = True) -> bytes:
    """What an AgentCenter sends: the file, then its hash."""
    parts = []
    if content is not None:
        head = 'name="file"; filename="file/token.zip"\r\nContent-Type: application/octet-stream'
        parts.append(f"Content-Disposition: form-data; {head}\r\n\r\n".encode() + content)
    if said is not None:
        parts.append(f'Content-Disposition: form-data; name="hash"\r\n\r\n{said}'.encode())
    if not file_first:
        parts.reverse()
    line = f"--{BOUNDARY}\r\n".encode()
    return b"".join(line + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def digest(content: bytes) -> str:
    """MD5 in hex."""
    return md5(content, usedforsecurity=False).hexdigest()


class _Case(SynchronousTestCase):
    settings: dict[str, Any] = {}  # noqa: RUF012

    def setUp(self) -> None:
        self.deployment = Deployment(**self.settings).start()
        self.addCleanup(self.deployment.end)
        self.folder = self.deployment.folder / "data" / "uploads"

    def upload(self, body: bytes, headers: dict[str, str] | None = None, sk: str = SK) -> Reply:
        """One upload."""
        client = self.deployment.network.client(Credentials(AK, sk))
        url = f"http://127.0.0.1:{self.deployment.settings.manager.port}{UPLOAD}"
        call = client.call("POST", url, body, headers=headers or FORM)
        reply: Reply = self.deployment.network.run(call)
        return reply

    def stored(self, content: bytes, **more: Any) -> str:
        """The name of a content that is taken."""
        reply = self.upload(form(content, digest(content), **more))
        answer = msgspec.json.decode(reply.body)
        assert (reply.status, answer["code"]) == (200, 0), answer
        name: str = answer["data"]
        return name

    def refused(self, body: bytes) -> tuple[int, int, str]:
        """Status, code and reason of one that is not."""
        reply = self.upload(body)
        answer = msgspec.json.decode(reply.body)
        self.assertEqual([path.name for path in self.folder.iterdir()], [])
        return reply.status, answer["code"], answer["data"]

    def download(self, name: str, token: str | None) -> Any:
        """One download."""
        return self.deployment.call("GET", DOWNLOAD + name, token=token)


class UploadTests(_Case):
    def test_there_and_back(self) -> None:
        """What came is what users get, whichever part of the form was first."""
        for file_first, content in [(True, b"PK\3\4" + bytes(range(256)) * 900), (False, b"")]:
            name = self.stored(content, file_first=file_first)
            self.assertEqual(name, f"upload-{NOW}-{digest(content)}.zip")
            for level in (0, 8):
                token = self.deployment.add_user(f"u{level}{len(content)}", level)
                got = self.download(name, token)
                self.assertEqual((got.status, got.text), (200, content))
                self.assertEqual(got.headers["content-type"], "application/octet-stream")
                self.assertEqual(
                    got.headers["content-disposition"], f'attachment; filename="{name}"'
                )
        self.assertEqual((self.folder / name).stat().st_mode & 0o777, 0o600)

    def test_nobody_else_downloads(self) -> None:
        """Without a login 401; a name that there is not, or that leads elsewhere, 404."""
        name = self.stored(b"x")
        self.assertEqual(self.download(name, None).status, 401)
        token = self.deployment.login()
        for other in ("upload-1-x.zip", "..%2Fmanager.db", "../manager.db", "%00", "a" * 300):
            self.assertEqual(self.download(other, token).status, 404, other)

    def test_who_may_not_see_hosts(self) -> None:
        """Levels without hosts in detail get no agent's file, nor hear whether there is one."""
        name = self.stored(b"/etc/shadow")
        for level in range(9):
            token = self.deployment.add_user(f"u{level}", level)
            status, other = self.download(name, token).status, self.download("other.zip", token)
            self.assertEqual(status, 404 if level in (4, 5) else 200)
            if level in (4, 5):
                self.assertEqual(self.download(name, token).json, other.json)

    def test_the_same_content_keeps_its_name(self) -> None:
        """Sent again, it takes no more room; the hash alone finds it."""
        name = self.stored(b"same")
        self.deployment.network.advance(5)
        self.assertEqual(self.stored(b"same"), name)
        answer = msgspec.json.decode(self.upload(form(None, digest(b"same"))).body)
        self.assertEqual(answer["data"], name)
        self.assertEqual(len(list(self.folder.iterdir())), 1)

    def test_files_that_are_gone(self) -> None:
        """A file that is noted and not there is 404, unknown by its hash, and taken again."""
        name, token = self.stored(b"lost"), self.deployment.login()
        (self.folder / name).unlink()
        self.assertEqual(self.download(name, token).status, 404)
        self.assertEqual(self.refused(form(None, digest(b"lost")))[1], 10)
        self.assertEqual(self.stored(b"lost"), name)
        self.assertEqual(self.download(name, token).text, b"lost")

    def test_a_disk_that_fails(self) -> None:
        """Is no fault of the file: the AgentCenter tries again."""
        self.folder.rmdir()
        reply = self.upload(form(b"x", digest(b"x")))
        self.assertEqual((reply.status, msgspec.json.decode(reply.body)["code"]), (503, 7))
        self.folder.mkdir()
        self.stored(b"x")

    def test_refused(self) -> None:
        """No hash 5; a wrong one, or one unknown without a file, 10; no form 400. None is kept."""
        self.assertEqual(self.refused(form(b"x", None))[:2], (200, 5))
        self.assertEqual(self.refused(form(b"x", digest(b"y")))[:2], (200, 10))
        self.assertEqual(self.refused(form(None, digest(b"x")))[:2], (200, 10))
        self.assertEqual(self.refused(form(b"x", digest(b"x"))[:-30])[:2], (400, 5))
        self.assertEqual(self.refused(b"no form at all")[:2], (400, 5))
        self.assertEqual(self.refused(form(b"x", "h" * 5000))[:2], (400, 5))

    def test_no_form_by_its_type(self) -> None:
        """A content type that is no form's is 400."""
        for kind in ("application/json", "multipart/form-data", "multipart/mixed; boundary=x"):
            self.assertEqual(self.upload(b"{}", {"content-type": kind}).status, 400)

    def test_signature_covers_the_file(self) -> None:
        """The body on disk is what was signed; a wrong key is 401 and nothing is kept."""
        reply = self.upload(form(b"x", digest(b"x")), sk=SK + "x")
        self.assertEqual(reply.status, 401)
        self.assertIn(b"signature error", reply.body)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_too_large(self) -> None:
        """A body that is announced above the limit is refused before it is read."""
        site = self.deployment.network.ports[self.deployment.settings.manager.port]
        raw = RawConnection(site)  # type: ignore[arg-type]
        head = f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nContent-Length: {321 << 20}\r\n\r\n"
        self.assertIn(b" 413 ", raw.send(head.encode()))
        raw.lose()

    def test_rooms_are_given_back(self) -> None:
        """All bodies on disk share a budget, and one that breaks off gives its part back."""
        site: Any = self.deployment.network.ports[self.deployment.settings.manager.port]
        raws = [RawConnection(site) for _ in range(4)]
        site.disk = BodyRoom(1 << 20, 1 << 19)
        head = f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nContent-Length: {140 << 10}\r\n\r\n"
        answers = [raw.send(head.encode() + b"x" * (130 << 10)) for raw in raws]
        self.assertEqual([b" 503 " in answer for answer in answers], [False] * 3 + [True])
        for raw in raws:
            raw.lose()
        self.assertEqual(site.disk.held, 0)
        self.stored(b"x")
        self.assertEqual(site.disk.held, 0)

    def test_a_start_removes_what_a_crash_left(self) -> None:
        """Files that nobody noted go; those that are noted stay."""
        name = self.stored(b"x")
        self.deployment.stop()
        (self.folder / "0123.part").write_bytes(b"half")
        (self.folder / "upload-1-orphan.zip").write_bytes(b"whole, not noted")
        self.deployment.start()
        self.assertEqual([path.name for path in self.folder.iterdir()], [name])
        self.assertEqual(self.download(name, self.deployment.login()).text, b"x")

    def test_database_trouble(self) -> None:
        """A file that cannot be noted is no success, and leaves nothing."""
        store = self.deployment.manager.store
        self.deployment.network.run(store.write(lambda c: c.exec_driver_sql("DROP TABLE upload")))
        self.assertEqual(self.refused(form(b"x", digest(b"x")))[:2], (200, 3))
        self.flushLoggedErrors()


class QuotaTests(_Case):
    settings = {"upload_quota_bytes": 1 << 20}  # noqa: RUF012

    def test_quota(self) -> None:
        """Beyond the quota an upload is code 10; what is there stays, what is known is told."""
        self.stored(b"a" * 600_000)
        content = b"b" * 600_000
        answer = msgspec.json.decode(self.upload(form(content, digest(content))).body)
        self.assertEqual(answer["code"], 10)
        self.assertIn("bytes already", answer["data"])
        store = self.deployment.manager.store
        self.assertEqual(self.deployment.network.run(store.read(uploads_bytes)), 600_000)
        self.stored(b"c" * 1000)


class LimitTests(SynchronousTestCase):
    def test_the_largest_upload_of_an_agent_fits(self) -> None:
        """600 pieces of 512,000 bytes, and what a form adds."""
        self.assertGreater(shared_api.UPLOAD_BYTES, 600 * 512_000 + 1_000_000)


class FormTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300) | st.just(b"\r\n--" + BOUNDARY.encode()[:-1]), st.booleans())
    def test_any_content(self, content: bytes, file_first: bool) -> None:
        """A file comes out as it went in."""
        kept: list[bytes] = []
        body = BytesIO(form(content, "ab", file_first))
        fields, found = read_form(body, BOUNDARY.encode(), "file", kept.append)
        self.assertEqual((b"".join(kept), fields, found), (content, {"hash": "ab"}, True))

    def test_cut_anywhere(self) -> None:
        """A form that ends early is no form, wherever it is cut."""
        whole = form(b"content", "ab")
        for cut in range(len(whole) - 2):
            with self.assertRaises(ParameterInvalid):
                read_form(BytesIO(whole[:cut]), BOUNDARY.encode(), "file", lambda _: None)

    def test_too_many_parts(self) -> None:
        """Endless parts end it."""
        part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'.encode()
        with self.assertRaises(ParameterInvalid):
            read_form(BytesIO(part * 100), BOUNDARY.encode(), "file", lambda _: None)

    def test_boundaries(self) -> None:
        """Quoted or not; absent or absurd ones are refused."""
        self.assertEqual(boundary_of('multipart/form-data; boundary="a b"'), b"a b")
        for bad in (None, "", "text/plain", "multipart/form-data; boundary=" + "x" * 71):
            with self.assertRaises(ParameterInvalid):
                boundary_of(bad)
