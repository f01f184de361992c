"""A Manager that behaves as the stock one does towards gateways, on the standard library alone.

    python -m tests.integration.stock_manager PORT FOLDER

It asks for no signature and ignores the query. What it takes is in FOLDER/taken.jsonl, one
``{"path", "body"}`` a line, written to the disk before it answers. FOLDER/answers.json holds what
it knows: ``{"tags": {id: "a,b"}, "config": [...] or null, "fault": {path: kind}}``, read anew for
each request; kinds are hang, close, 500, code, null and html.
"""

import hashlib
import json
import os
import sys
import time
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

INFO = "/api/v1/agent/queryInfo"
RESULTS = "/api/v1/agent/updateSubTask"
CONFIG = "/api/v6/component/GetComponentInstances"
UPLOAD = "/api/v6/shared/Upload"
CLUSTERS = "/api/v6/kube/inner/cluster/list"
HANG_SECONDS = 30  # longer than any gateway waits
TEXTS = ("agent_id", "kernel_version", "platform_family", "arch")  # of a host, or 400

MESSAGES = {0: "success", 5: "param invalid", 10: "unknown error"}


class StockManager(ThreadingHTTPServer):
    """The server and its memory."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, folder: Path) -> None:
        self.folder, self.lock = folder, Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def answers(self) -> dict[str, Any]:
        """What it knows now."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "answers.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def take(self, path: str, body: Any) -> None:
        """Write down for good what came."""
        line = json.dumps({"path": path, "body": body, "at": time.time()}) + "\n"
        with self.lock, (self.folder / "taken.jsonl").open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: StockManager

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, raw: bytes) -> None:
        path = self.path.partition("?")[0]
        known = self.server.answers()
        fault = known.get("fault", {}).get(path)
        if fault == "hang":
            time.sleep(HANG_SECONDS)
        if fault in {"hang", "close"}:
            self.close_connection = True
        elif fault == "500":
            self._send(500, b"", "text/plain")
        elif fault == "html":
            self._send(200, b"<html>a proxy</html>", "text/html")
        elif fault == "code":
            self._answer(10, None)
        elif fault == "null":
            self._answer(0, None)
        else:
            self._route(path, raw, known)

    def _route(self, path: str, raw: bytes, known: dict[str, Any]) -> None:
        if path == UPLOAD:
            self._upload(raw)
            return
        if path == CLUSTERS and self.command == "GET":
            self._answer(0, [])
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self._answer(5, "invalid character", 400)
            return
        self.server.take(path, body)
        if path == INFO and isinstance(body.get("id_list"), list):
            rest = {"psm_name": "", "psm_path": "", "enhanced": "false"}
            tags = known.get("tags", {})
            self._answer(0, {i: {"tags": tags[i], **rest} for i in body["id_list"] if i in tags})
        elif path == RESULTS and isinstance(body, list):
            self._answer(0, None)
        elif path == CONFIG and all(isinstance(body.get(key, ""), str) for key in TEXTS):
            self._answer(0, known.get("config"))
        elif path in {INFO, RESULTS, CONFIG}:
            self._answer(5, "json: cannot unmarshal", 400)
        else:
            self._send(404, b"404 page not found", "text/plain")

    def _upload(self, raw: bytes) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts: dict[str, bytes] = {}
        for part in message_from_bytes(head + raw).walk():
            name = part.get_param("name", header="content-disposition")
            if isinstance(name, str):
                content = part.get_payload(decode=True)
                assert isinstance(content, bytes)
                parts[name] = content
        said = parts.get("hash", b"").decode()
        content = parts.get("file", b"")
        if not said:
            self._answer(5, "no file hash")
        elif said != hashlib.md5(content, usedforsecurity=False).hexdigest():
            self._answer(10, "hash")
        else:
            name = f"upload-{int(time.time())}-{said}.zip"
            (self.server.folder / name).write_bytes(content)
            self.server.take(UPLOAD, name)
            self._answer(0, name)

    def _answer(self, code: int, data: Any, status: int = 200) -> None:
        text = json.dumps({"code": code, "msg": MESSAGES[code], "data": data})
        self._send(status, text.encode(), "application/json; charset=utf-8")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until killed."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    server = StockManager(port, folder)
    print("ready: stock Manager", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
