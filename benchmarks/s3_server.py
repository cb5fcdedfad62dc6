"""A small S3 server over a folder, for rates: ``python -m benchmarks.s3_server FOLDER`` prints its endpoint and serves.

It does what streaming and ingesting need (GET with ranges, HEAD, PUT, conditional PUT, DELETE, paged listing), checks
no signature, listens on loopback only, and hands files to the socket without copying them: moto reads a whole object
for each range, which would be measured instead of the client.
"""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1_000


class Handler(BaseHTTPRequestHandler):
    """One connection; objects are files below ``root``/BUCKET."""

    root: Path
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits 40 ms for the client to acknowledge the head

    def log_message(self, *args: object) -> None:
        """Do not log requests."""

    def _path(self) -> Path:
        path = Path(os.path.normpath(self.root / unquote(urlsplit(self.path).path).lstrip("/")))
        assert path.is_relative_to(self.root), "a key leads out of the folder"
        return path

    def do_GET(self) -> None:
        """An object, a range of it, or a listing."""
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "list-type" in query:
            return self._list({name: values[0] for name, values in query.items()})
        return self._send_object(with_body=True)

    def do_HEAD(self) -> None:
        """Size and ETag of an object."""
        self._send_object(with_body=False)

    def do_PUT(self) -> None:
        """Write an object, whole or not at all."""
        data, path = self.rfile.read(int(self.headers.get("Content-Length", 0))), self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
        temporary.write_bytes(data)
        try:
            if self.headers.get("If-None-Match") == "*":
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        except FileExistsError:
            return self._send(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        finally:
            temporary.unlink(missing_ok=True)
        return self._send(200, b"", {"ETag": _etag(path)})

    def do_DELETE(self) -> None:
        """Remove an object; a missing one is not an error."""
        self._path().unlink(missing_ok=True)
        self._send(204, b"")

    def _send_object(self, *, with_body: bool) -> None:
        path = self._path()
        if not path.is_file():
            return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>" if with_body else b"")
        size, start, status = path.stat().st_size, 0, 200
        headers = {"ETag": _etag(path), "Accept-Ranges": "bytes"}
        stop = size
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else size - int(last)
            stop = min(size, int(last) + 1) if first and last else size
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
        self._head(status, stop - start, headers)
        if with_body:
            self.wfile.flush()
            with path.open("rb") as file:
                while start < stop:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)
        return None

    def _list(self, query: dict[str, str]) -> None:
        bucket, prefix = self._path(), query.get("prefix", "")
        folder = bucket / prefix.rpartition("/")[0]
        keys = sorted(
            p.relative_to(bucket).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".part"
        )
        after = query.get("continuation-token", query.get("start-after", ""))
        found = [key for key in keys if key.startswith(prefix) and key > after]
        page = found[:PAGE]
        entries = "".join(_entry(bucket, key) for key in page)
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(found) > PAGE else ""
        truncated = str(len(found) > PAGE).lower()
        text = f"<IsTruncated>{truncated}</IsTruncated><KeyCount>{len(page)}</KeyCount>{more}{entries}"
        self._send(200, f'<?xml version="1.0"?><ListBucketResult>{text}</ListBucketResult>'.encode())

    def _head(self, status: int, num_bytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(num_bytes)}.items():
            self.send_header(name, value)
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), {"Content-Type": "application/xml", **(headers or {})})
        self.wfile.write(body)


def _etag(path: Path) -> str:
    """Size and time: an object that is replaced has another."""
    status = path.stat()
    return f'"{status.st_size:x}{status.st_mtime_ns:x}"'


def _entry(bucket: Path, key: str) -> str:
    """One object of a listing."""
    path = bucket / key
    parts = f"<Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size><ETag>{_etag(path)}</ETag>"
    return f"<Contents>{parts}<LastModified>2026-11-02T00:00:00.000Z</LastModified></Contents>"


def main() -> None:
    """Serve until the process is ended."""
    handler = type("Rooted", (Handler,), {"root": Path(sys.argv[1]).resolve()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
