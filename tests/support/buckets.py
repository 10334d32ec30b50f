"""A Google Cloud Storage emulator on the loopback address, with faults on request.

`python -m tests.support.buckets` serves one until Ctrl-C, and prints what other shells need to use it. The emulator
knows no preconditions, which atomic creation rests on; they are added here. Its parser takes a carriage return at the
end of an object for a part of the line end that follows; here objects stay as they were sent.
"""

import contextlib
import functools
import http.server
import io
import json
import logging
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

from gcp_storage_emulator import server as emulator

BUCKET = "spirit"
DROP = 0
"""The fault of a connection that ends in the middle of an object."""


class Faults:
    """Faults to come: by method and a part of the path, each for a number of requests."""

    def __init__(self) -> None:
        self._planned: list[list[Any]] = []
        self._lock = threading.Lock()
        self.requests: list[str] = []
        """Method and path of every request."""

    def plan(self, kind: int, times: int = 1, method: str = "", path: str = "") -> None:
        """Answer the next requests with an HTTP status, or `DROP`, where they match."""
        with self._lock:
            self._planned.append([times, kind, method, path])

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._planned.clear()
            self.requests.clear()

    def take(self, method: str, path: str) -> int | None:
        """The fault of a request, None if it is answered as usual."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            for fault in self._planned:
                if fault[0] and fault[2] in method and fault[3] in path:
                    fault[0] -= 1
                    return fault[1]
        return None


class _Half:
    """An answer, of whose content the second half never comes."""

    def __init__(self, file: Any):
        self._file, self._has_headers = file, False

    def write(self, data: bytes) -> None:
        """Write the headers, and then half of the content."""
        if not self._has_headers:
            self._file.write(data)
            self._has_headers = True
            return
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise ConnectionAbortedError("dropped by the test")

    def flush(self) -> None:
        """Flush."""
        self._file.flush()


class _Handler(emulator.RequestHandler):
    faults: Faults
    creating = threading.Lock()

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        boundary = re.search('boundary="?([^";]+)', self.headers.get("Content-Type") or "")
        if boundary and body.startswith(b"--%b\n" % boundary[1].encode()):  # lines end without a carriage return
            end = b"\n--%b--" % boundary[1].encode()
            body = body.removesuffix(end) + b"\r" + end
            self.headers.replace_header("Content-Length", str(len(body)))
        self.rfile = io.BytesIO(body)
        fault = self.faults.take(method, self.path)
        if fault == DROP:
            half: Any = _Half(self.wfile)  # only write and flush are used
            self.wfile = half
        elif fault is not None:
            self._refuse(fault)
            return
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        with self.creating if method == "POST" else contextlib.nullcontext():
            if query.get("ifGenerationMatch") == ["0"] and self._exists(query, body):
                self._refuse(412)
            else:
                getattr(super(), f"do_{method}")()

    def _exists(self, query: dict[str, list[str]], body: bytes) -> bool:
        named = re.search(rb'"name": *"([^"]+)"', body)
        name = query["name"][0] if "name" in query else named[1].decode() if named else ""
        bucket = urllib.parse.urlparse(self.path).path.split("/b/")[1].split("/")[0]
        try:
            self.storage.get_file_obj(bucket, name)
        except emulator.buckets.NotFound:
            return False
        return True

    def _refuse(self, status: int) -> None:
        content = json.dumps({"error": {"code": status, "message": f"status {status} by the test"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """Serve it."""
        self._serve("GET")

    def do_POST(self) -> None:
        """Serve it."""
        self._serve("POST")

    def do_PUT(self) -> None:
        """Serve it."""
        self._serve("PUT")

    def do_DELETE(self) -> None:
        """Serve it."""
        self._serve("DELETE")

    def do_PATCH(self) -> None:
        """Serve it."""
        self._serve("PATCH")


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that a test has dropped."""


@contextlib.contextmanager
def emulated_bucket() -> Iterator[tuple[str, Faults]]:
    """Serve an empty bucket `BUCKET`; yields the address of the server and its faults."""
    for name in ("gcp_storage_emulator", emulator.__name__):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    storage = emulator.Storage(use_memory_fs=True)
    emulator.buckets.create_bucket(BUCKET, storage)
    faults = Faults()
    handler = type("Handler", (_Handler,), {"faults": faults})
    server = _Server(("127.0.0.1", 0), functools.partial(handler, storage))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    with emulated_bucket() as (address, _):
        print(f"export STORAGE_EMULATOR_HOST={address} TENSORSTORE_GCS_HTTP_URL={address}  # gs://{BUCKET}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
