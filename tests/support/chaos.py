"""A real S3 server in its own process, and a proxy before it that breaks what tests tell it to
break.
"""

import http.client
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def s3_server():
    """moto's S3 on a free port of this machine; yields (host, port)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait(10)


class Chaos(ThreadingHTTPServer):
    """Forwards everything to `target`.

    `plan(method, path, number)` names a fault for a request, or None; `log` is what came.

    Faults: '503', '429', '403', 'reset', 'cut' (half of the body), 'hang', 'whole' (Range ignored:
    200 and everything), 'shifted' (another range than asked for), 'stale' (the first listing of
    that path again), 'newer' (If-Match ignored).
    """

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.plan, self.log = target, lambda method, path, number: None, []
        self.listings, self.hang_seconds, self.before = {}, 3.0, lambda method, path, number: None
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # clients hang up on hangs

    def reset(self):
        self.plan, self.before = (
            (lambda method, path, number: None),
            (lambda method, path, number: None),
        )
        self.log.clear()
        self.listings.clear()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        body = self.read_body()
        with self.server.lock:
            self.server.log.append((self.command, self.path, self.headers.get("Range", "")))
            number = sum(path == self.path for _, path, _ in self.server.log)
        self.server.before(self.command, self.path, number)
        fault = self.server.plan(self.command, self.path, number)
        if fault in ("503", "429", "403"):
            return self.answer(
                int(fault),
                [],
                {
                    "503": b"<Error><Code>SlowDown</Code></Error>",
                    "429": b"",
                    "403": b"<Error><Code>AccessDenied</Code></Error>",
                }[fault],
            )
        if fault == "hang":
            time.sleep(self.server.hang_seconds)
            self.close_connection = True
            return None
        if fault == "reset":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower()
            not in (
                "connection",
                *(("range",) if fault == "whole" else ()),
                *(("if-match",) if fault == "newer" else ()),
            )
        }
        if fault == "shifted":
            headers["Range"] = "bytes=8-15"
        status, reply_headers, reply = self.forward(headers, body)
        if "list-type" in self.path:
            first = self.server.listings.setdefault(self.path, reply)
            reply = first if fault == "stale" else reply
        return self.answer(status, reply_headers, reply, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def forward(self, headers, body):
        connection = http.client.HTTPConnection(*self.server.target, timeout=60)
        headers.pop("Transfer-Encoding", None)
        connection.request(self.command, self.path, body=body or None, headers=headers)
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        self.length = reply.getheader("Content-Length")
        return reply.status, reply.getheaders(), data

    def answer(self, status, headers, body, *, cut=False):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header(
            "Content-Length",
            self.length if self.command == "HEAD" and status == 200 else str(len(body)),
        )
        self.end_headers()
        if cut:
            self.close_connection = True
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            return self.connection.shutdown(socket.SHUT_RDWR)
        return self.wfile.write(body) if self.command != "HEAD" else None

    def log_message(self, *arguments):
        pass
