"""A stand-in of the model hub on this machine: the part of its HTTP interface that uploads and downloads take.

    with hub_server() as hub:
        ...  # a process with `hub.environment`
        hub.files["me/films"]  # what was pushed

It checks the token, as the hub does, and that large files come by Git LFS with the content that was announced.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_of_the_stand_in"


@dataclass
class Hub:
    """What the hub holds.

    Attributes:
        url: its address.
        files: content by name of the files of each repository.
        private: whether each repository is.
        messages: of the commits.
        broken: whether commits fail.
    """

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    broken: bool = False
    large: dict[str, bytes] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which huggingface_hub takes this for the hub."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self._body()
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return self._announce(json.loads(body))
        if path.startswith("/api/models/"):
            owner, name, what, _ = path.removeprefix("/api/models/").split("/", 3)
            if what == "preupload":
                return self._modes(json.loads(body))
            if what == "commit":
                return self._commit(f"{owner}/{name}", body)
        self._answer({"error": f"unknown: {path}"}, 404)

    def do_PUT(self) -> None:
        content, digest = self._body(), self.path.rsplit("/", 1)[1]
        if hashlib.sha256(content).hexdigest() != digest:
            return self._answer({"error": "another content"}, 400)
        self.hub.large[digest] = content
        self._answer({})

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path == "/api/whoami-v2":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer({"error": "Invalid username or password."}, 401)
            return self._answer({"type": "user", "name": "me", "orgs": []})
        if path.startswith("/api/models/"):
            repository = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if repository in self.hub.files:
                names = [{"rfilename": name} for name in self.hub.files[repository]]
                return self._answer({"id": repository, "modelId": repository, "sha": "1" * 40, "siblings": names})
        parts = path.strip("/").split("/", 4)
        if len(parts) == 5 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[4])
        self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "me"
        name = asked["name"] if "/" in asked["name"] else f"{owner}/{asked['name']}"
        if not name.startswith("me/"):
            return self._answer({"error": f"You don't have the rights to create a model under {owner!r}"}, 403)
        known = name in self.hub.files
        self.hub.files.setdefault(name, {})
        private = asked.get("private") or asked.get("visibility") == "private"  # as versions of the client write it
        self.hub.private.setdefault(name, bool(private))
        self._answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name}, 409 if known else 200)

    def _modes(self, asked: dict[str, Any]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._answer({"files": modes})

    def _announce(self, asked: dict[str, Any]) -> None:
        objects = [
            {
                **one,
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}", "header": {}}},
            }
            for one in asked["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, body: bytes) -> None:
        if self.hub.broken:
            return self._answer({"error": "The hub is being repaired."}, 400)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                self.hub.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[repository][value["path"]] = self.hub.large[value["oid"]]
        address = f"{self.hub.url}/{repository}/commit/{'1' * 40}"
        self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": address, "hookOutput": ""})

    def _file(self, repository: str, name: str) -> None:
        content = self.hub.files.get(repository, {}).get(name)
        if content is None:
            return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        self._send(content, 200, {"ETag": f'"{digest}"', "X-Repo-Commit": "1" * 40, "X-Linked-Size": str(len(content))})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().strip(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, value: dict[str, Any], code: int = 200, headers: dict[str, str] | None = None) -> None:
        more = {"X-Error-Message": value["error"]} if "error" in value else {}
        self._send(json.dumps(value).encode(), code, {"Content-Type": "application/json", **more, **(headers or {})})

    def _send(self, content: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
