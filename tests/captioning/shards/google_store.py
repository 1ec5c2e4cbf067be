"""Google's object store in memory, as far as gcsfs asks it: names, generations and the conditions on them."""

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

MAX_NAMES = 3
"""Names in one answer to a listing, so that short lists have several pages, too."""


@dataclass
class Upload:
    """A resumable upload. Its condition is that of the request that began it, and holds when it ends."""

    name: str
    only_if_absent: bool
    data: bytearray = field(default_factory=bytearray)
    answer: Any = None


class GoogleStore:
    """A WSGI application with the JSON API of one bucket. What it knows nothing about is an error 501.

    Attributes:
        objects: the generation and the bytes of each name.
    """

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.objects: dict[str, tuple[int, bytes]] = {}
        self._uploads: dict[str, Upload] = {}
        self._generation = 1_700_000_000_000_000
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        from werkzeug.wrappers import Request

        request = Request(environ)
        data = request.get_data()
        with self._lock:
            response = self._answer(request, data)
        return response(environ, start)

    def _answer(self, request: Any, data: bytes) -> Any:
        found = re.fullmatch(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", request.path, re.DOTALL)
        if found is None or found[2] != self.bucket:
            return _failure(404, "The specified bucket does not exist.")
        match request.method, found[1], found[3]:
            case "GET", None, None:
                return self._listed(request.args) if request.path.endswith("/o") else _json({"name": self.bucket})
            case "GET", None, name if name in self.objects:
                return _json(self._about(name))
            case "GET", "download", name if name in self.objects:
                return self._bytes(name, request.headers.get("Range"))
            case "DELETE", None, name if name in self.objects:
                del self.objects[name]
                return _json(None, 204)
            case "GET" | "DELETE", None | "download", _:
                return _failure(404, f"No such object: {self.bucket}/{found[3]}")
            case "DELETE", "upload", None:
                self._uploads.pop(request.args["upload_id"], None)
                return _json(None, 499)
            case "POST" | "PUT", "upload", None if "upload_id" in request.args:
                return self._go_on(self._uploads[request.args["upload_id"]], request.headers["Content-Range"], data)
            case "POST", "upload", None if request.args["uploadType"] == "resumable":
                return self._begin(request)
            case "POST", "upload", None if request.args["uploadType"] == "multipart":
                about, content = _parts(data, request.headers["Content-Type"])
                return self._insert(about["name"], content, request.args.get("ifGenerationMatch") == "0")
        return _failure(501, f"{request.method} {request.full_path}")

    def _listed(self, asked: Any) -> Any:
        prefix, delimiter, most = asked.get("prefix", ""), asked.get("delimiter"), int(asked.get("maxResults", 1000))
        names: dict[str, bool] = {}
        for name in sorted(self.objects):
            if name.startswith(prefix) and name > asked.get("pageToken", ""):
                inside = name[len(prefix) :]
                is_folder = bool(delimiter) and delimiter in inside
                names[prefix + inside.partition(delimiter)[0] + delimiter if is_folder else name] = is_folder
        names.pop(asked.get("pageToken"), None)  # a folder that the last page had
        page = list(names.items())[: min(most, MAX_NAMES)]
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [self._about(name) for name, is_folder in page if not is_folder],
            "prefixes": [name for name, is_folder in page if is_folder],
        }
        return _json(answer | ({"nextPageToken": page[-1][0]} if len(page) < len(names) else {}))

    def _bytes(self, name: str, asked: str | None) -> Any:
        from werkzeug.wrappers import Response

        generation, data = self.objects[name]
        headers = {"x-goog-generation": str(generation)}
        if asked is None:
            return Response(data, 200, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = (int(first), int(last or len(data))) if first else (max(0, len(data) - int(last)), len(data))
        if begin >= len(data):
            return _failure(416, "The requested range cannot be satisfied.")
        part = data[begin : end + 1]
        return Response(part, 206, headers | {"Content-Range": f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"})

    def _begin(self, request: Any) -> Any:
        upload = secrets.token_hex(8)
        condition = request.args.get("ifGenerationMatch")
        self._uploads[upload] = Upload(request.args["name"], condition == "0")
        query = f"uploadType=resumable&upload_id={upload}" + (f"&ifGenerationMatch={condition}" if condition else "")
        return _json(None, 200, {"Location": f"{request.base_url}?{query}"})

    def _go_on(self, upload: Upload, content_range: str, data: bytes) -> Any:
        """Take what follows of an upload, some of which may be here already; the last part makes the object."""
        first, _, total = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", content_range).groups()  # type: ignore[union-attr]
        if upload.answer is None:
            if first is not None:
                upload.data[int(first) :] = data
            if total != str(len(upload.data)):
                return _json(None, 308, {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {})
            upload.answer = self._insert(upload.name, bytes(upload.data), upload.only_if_absent)
        return upload.answer

    def _insert(self, name: str, data: bytes, only_if_absent: bool) -> Any:
        if only_if_absent and name in self.objects:
            return _failure(412, "At least one of the pre-conditions you specified did not hold.")
        self._generation += 1
        self.objects[name] = self._generation, data
        return _json(self._about(name))

    def _about(self, name: str) -> dict[str, Any]:
        generation, data = self.objects[name]
        return {"name": name, "bucket": self.bucket, "size": str(len(data)), "generation": str(generation)}


def _parts(data: bytes, content_type: str) -> tuple[dict[str, Any], bytes]:
    """Return the two parts of a multipart/related body."""
    line = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    _, about, rest = data.split(line, 2)
    return json.loads(about.partition(b"\n\n")[2]), rest.partition(b"\n\n")[2].rpartition(b"\n" + line)[0]


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    from werkzeug.wrappers import Response

    text = "" if value is None else json.dumps(value)
    return Response(text, status, headers, content_type="application/json")


def _failure(status: int, message: str) -> Any:
    return _json({"error": {"code": status, "message": message}}, status)
