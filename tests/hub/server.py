"""A Hub on this machine: the endpoints that huggingface_hub calls, repositories in memory, and faults by switch.

with HubServer() as hub:
    hub.fail(r"POST .*/commit/", 503)  # each such request from now on
    hub.cut(r"PUT /lfs/", times=1)     # the next one loses its connection half-way
    hub.repositories["ada/net"].files("main")["config.json"].content
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

SMALL = 10 * 2**20  # bytes up to which text is no LFS file
TEXT = (".json", ".md", ".yaml")


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether it is stored in LFS."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_sha(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, Blob]


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("0" * 40, "initial", {})]})

    def files(self, revision: str = "main") -> dict[str, Blob]:
        return self.commit(revision).files

    def commit(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next(c for commits in self.branches.values() for c in commits if c.sha == revision)


@dataclass
class Fault:
    pattern: str
    status: int | None  # None: the connection is cut half-way
    times: float


@dataclass(frozen=True)
class Request:
    """A received request; `body` is the part of it that arrived."""

    line: str
    body: bytes


class Answer(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None):
        self.status, self.message, self.code = status, message, code
        self.body = body or {"error": message}


class HubServer:
    """Serves from entry to exit, on a free port of 127.0.0.1.

    `user` owns `token`, which may write under its own name only; `reader` is a read-only token.
    """

    user = "ada"

    def __init__(self) -> None:
        self.token, self.reader = (f"hf_{uuid.uuid4().hex}" for _ in range(2))
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.received: list[Request] = []
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, status: int, times: float = float("inf")) -> None:
        """Answers requests whose `METHOD /path` matches with `status`."""
        self.faults.append(Fault(pattern, status, times))

    def cut(self, pattern: str, times: float = float("inf")) -> None:
        """Reads half of the body of such requests, then closes the connection."""
        self.faults.append(Fault(pattern, None, times))

    def mend(self) -> None:
        self.faults.clear()

    def requests(self, pattern: str) -> list[Request]:
        return [request for request in self.received if re.match(pattern, request.line)]

    # ---- the endpoints: (method, path, what answers it) ----

    def create_repository(self, caller: str | None, body: bytes) -> dict:
        wanted = json.loads(body)
        owner = wanted.get("organization") or caller
        name = f"{owner}/{wanted['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name, "id": uuid.uuid4().hex}
        self.may_write(caller, name)
        if name in self.repositories:
            raise Answer(409, "You already created this model repo", body={"error": "exists", **answer})
        self.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return answer

    def whoami(self, caller: str | None, body: bytes) -> dict:
        return {"type": "user", "name": caller, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def validate_yaml(self, caller: str | None, body: bytes) -> dict:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        return {"errors": [], "warnings": []}

    def auth_check(self, caller: str | None, body: bytes, name: str, write: str | None) -> dict:
        self.repository(name)
        if write:
            self.may_write(caller, name)
        return {}

    def model_info(self, caller: str | None, body: bytes, name: str, revision: str | None) -> dict:
        repository, commit = self.at(name, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        return {"id": name, "modelId": name, "sha": commit.sha, "private": repository.private, "siblings": siblings}

    def create_branch(self, caller: str | None, body: bytes, name: str, branch: str) -> dict:
        self.may_write(caller, name)
        branches = self.repository(name).branches
        if branch in branches:
            raise Answer(409, "Reference already exists")
        branches[branch] = list(branches["main"])
        return {}

    def tree(self, caller: str | None, body: bytes, name: str, revision: str) -> list:
        return [_entry(path, blob) for path, blob in self.at(name, revision)[1].files.items()]

    def preupload(self, caller: str | None, body: bytes, name: str, revision: str) -> dict:
        self.may_write(caller, name)
        there = self.at(name, revision)[1].files
        files = []
        for wanted in json.loads(body)["files"]:
            path = wanted["path"]
            mode = "regular" if path.endswith(TEXT) and wanted["size"] < SMALL else "lfs"
            oid = {"oid": there[path].etag} if path in there else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"files": files}

    def lfs_batch(self, caller: str | None, body: bytes, name: str) -> dict:
        self.may_write(caller, name)
        objects = [{"oid": o["oid"], "size": o["size"]} for o in json.loads(body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.lfs:
                wanted["actions"] = {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, caller: str | None, body: bytes, oid: str) -> dict:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, "the content is not that of the oid")
        self.lfs[oid] = body
        return {}

    def commit(self, caller: str | None, body: bytes, name: str, revision: str) -> dict:
        self.may_write(caller, name)
        repository, head = self.at(name, revision)
        files, message = dict(head.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif value["oid"] not in self.lfs:
                raise Answer(400, f"{value['path']} was never uploaded")
            else:
                files[value["path"]] = Blob(self.lfs[value["oid"]], lfs=True)
        sha = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        repository.branches[revision].append(Commit(sha, message, files))
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{name}/commit/{sha}", "hookOutput": ""}

    # ---- what they share ----

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Answer(404, "Repository not found", "RepoNotFound")
        return self.repositories[name]

    def at(self, name: str, revision: str) -> tuple[Repository, Commit]:
        repository = self.repository(name)
        try:
            return repository, repository.commit(revision)
        except StopIteration:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None

    def may_write(self, caller: str | None, name: str) -> None:
        if caller != name.split("/")[0]:
            raise Answer(403, f"You don't have the rights to write under the namespace {name.split('/')[0]}")


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", HubServer.create_repository),
    ("GET", r"/api/whoami-v2", HubServer.whoami),
    ("POST", r"/api/validate-yaml", HubServer.validate_yaml),
    ("GET", rf"/api/models/{_NAME}/auth-check(/write)?", HubServer.auth_check),
    ("GET", rf"/api/models/{_NAME}(?:/revision/(.+))?", HubServer.model_info),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", HubServer.create_branch),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)", HubServer.tree),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", HubServer.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
    ("PUT", r"/lfs/(\w+)", HubServer.lfs_upload),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", HubServer.commit),
]
PUBLIC = r"PUT /lfs/|(GET|HEAD) /api/agent-harnesses"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_) -> None:
        """Keeps the output of the tests clean."""

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        fault = self._fault(line)
        is_cut = fault is not None and fault.status is None
        body = b"".join(self._body(half=is_cut))
        self.hub.received.append(Request(line, body))
        try:
            if is_cut:
                self.close_connection = True
                return
            if fault is not None:
                raise Answer(fault.status or 500, "out of order")
            found = re.fullmatch(rf"/{_NAME}/resolve/([^/]+)/(.+)", path)
            caller = self._caller(line)
            if found and self.command in ("GET", "HEAD"):
                self._send_file(*found.groups())
            else:
                self._send(200, json.dumps(self._route(path, caller, body)).encode())
        except Answer as answer:
            headers = {"X-Error-Message": answer.message} | ({"X-Error-Code": answer.code} if answer.code else {})
            page = b"<html>out of order</html>" if answer.status >= 500 else json.dumps(answer.body).encode()
            self._send(answer.status, page, headers)

    def _route(self, path: str, caller: str | None, body: bytes):
        for method, pattern, endpoint in ROUTES:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                return endpoint(self.hub, caller, body, *found.groups())
        self.hub.unknown.append(f"{self.command} {path}")
        raise Answer(404, "no such endpoint")

    def _caller(self, line: str) -> str | None:
        if re.match(PUBLIC, line):
            return None
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (self.hub.token, self.hub.reader):
            raise Answer(401, "Invalid credentials in Authorization header")
        return self.hub.user if token == self.hub.token else "a reader"

    def _fault(self, line: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times > 0 and re.match(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    def _body(self, half: bool) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size // 2 if half else size)
                if half:
                    return
                self.rfile.readline()
            self.rfile.readline()
        else:
            size = int(self.headers.get("Content-Length") or 0)
            yield self.rfile.read(size // 2 if half else size)

    def _send_file(self, name: str, revision: str, path: str) -> None:
        _, commit = self.hub.at(name, revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            self._send(404, b"{}", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        blob = commit.files[path]
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        self._send(200, blob.content, {**headers, "ETag": f'"{blob.etag}"'})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, blob: Blob) -> dict:
    lfs = {"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}} if blob.lfs else {}
    return {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_sha, **lfs}
