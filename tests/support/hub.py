"""A model hub in 80 lines: enough of its HTTP for one real client to push to and pull from."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by name, each a dictionary of files."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, Any] = {}
        self.fetched: list[str] = []
        self.address = ""


def answer(hub: Hub, path: str, body: bytes) -> Any:
    """The JSON answer to an API call; None where there is nothing of that name."""
    parts = unquote(path).strip("/").split("/")
    if path == "/api/repos/create":
        given = json.loads(body)
        name = "/".join(p for p in (given.get("organization"), given["name"]) if p)
        hub.repos.setdefault(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        hub.visibility[name] = given
        return {"url": f"{hub.address}/{name}"}
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    name = "/".join(parts[2:4])
    files = hub.repos.get(name)
    if files is None:
        return None
    action = parts[4] if len(parts) > 4 else ""
    if action == "preupload":
        given = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
        return {"files": [{**f, "shouldIgnore": False, "oid": None} for f in given]}
    if action == "commit":
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                files.pop(entry["value"]["path"], None)
        return {"commitUrl": f"{hub.address}/{name}/commit/{sha(files)}", "commitOid": sha(files)}
    if action == "tree":
        return [{"type": "file", "path": f, "size": len(c), "oid": "0"} for f, c in files.items()]
    siblings = [{"rfilename": file} for file in files]
    return {"id": name, "modelId": name, "sha": sha(files), "siblings": siblings, "tags": []}


def sha(files: dict[str, bytes]) -> str:
    """A commit name for the state of a repository."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None: ...

    def reply(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/resolve/" in path:
            name, _, rest = unquote(path).strip("/").partition("/resolve/")
            file = rest.split("/", 1)[1]
            files = self.hub.repos.get(name, {})
            if file not in files:
                return self.reply(404, b"", X_Error_Code="EntryNotFound")
            self.hub.fetched.append(file)
            etag = hashlib.sha256(files[file]).hexdigest()
            return self.reply(200, files[file], ETag=f'"{etag}"', X_Repo_Commit=sha(files))
        found = answer(self.hub, path, body)
        if found is None:
            return self.reply(404, b"{}", X_Error_Code="RepoNotFound")
        self.reply(200, json.dumps(found).encode(), Content_Type="application/json")

    do_GET = do_HEAD = do_POST = handle_one


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free local port."""
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
