"""A stand-in for the Hugging Face hub on loopback: what uploading and reading a dataset uses.

Repositories with branches, commits of regular and LFS files, LFS batches with single and multipart
uploads, pages of the tree, parts of files, tokens. Paths, headers and codes are those of the real
hub, and objects are checked by their SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_stand_in_token"
LFS_SUFFIXES = (".parquet", ".tar", ".png")
PAGE = 3
"""Entries per page of a tree."""

PART = 20_000
"""Bytes per part; larger objects are uploaded in parts."""


@dataclass
class Repository:
    """A dataset: the files of each branch, and the commits."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)


class HubServer(ThreadingHTTPServer):
    """The hub.

    Attributes:
        repositories: by `owner/name`.
        objects: content of LFS objects by SHA-256.
        uploads: how often each object was completely uploaded.
        requests: method and path of each request.
        hold_after: objects after which the next upload waits in the middle, None for no limit.
        held: set while an upload waits.
        offers_xet: whether it gives tokens for Xet, which it does not have.
        status: of every answer, if it is not 0.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.hold_after: int | None = None
        self.held = threading.Event()
        self.released = threading.Event()
        self.offers_xet = False
        self.status = 0

    @property
    def url(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a dataset by path."""
        return self.repositories[name].branches[branch]

    def store(self, digest: str, content: bytes) -> int:
        """Keep an object; returns a status."""
        if hashlib.sha256(content).hexdigest() != digest:
            return 400
        self.uploads[digest] += 1
        self.objects[digest] = content
        return 200


class _Request(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = self.begin()
        if parts is None:
            return
        match parts[1:]:
            case ["api", "datasets", owner, name]:
                repository = self.repository(owner, name)
                if repository is not None:
                    self.answer({"id": f"{owner}/{name}", "private": repository.private})
            case ["api", "datasets", owner, name, "revision", branch]:
                repository = self.repository(owner, name)
                if repository is not None:
                    number = f"{len(repository.commits):040x}"
                    self.answer({"id": f"{owner}/{name}", "sha": number})
            case ["api", "datasets", owner, name, "xet-write-token", branch]:
                self.answer({}, 200 if self.server.offers_xet else 404)
            case ["api", "datasets", owner, name, "tree", branch]:
                repository = self.repository(owner, name)
                if repository is not None and branch not in repository.branches:
                    self.answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
                elif repository is not None and "recursive=true" in self.path.lower():
                    self.tree(repository.branches[branch])
                elif repository is not None:
                    self.folder(repository.branches[branch], "")
            case ["api", "datasets", owner, name, "tree", branch, *folder]:
                repository = self.repository(owner, name)
                if repository is not None:
                    self.folder(repository.branches[branch], "/".join(folder))
            case ["datasets", owner, name, "resolve", branch, *path]:
                repository = self.repository(owner, name)
                if repository is not None:
                    self.file(repository.branches[branch]["/".join(path)])
            case _:
                self.answer({}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.begin()
        if parts is None:
            return
        server = self.server
        match parts[1:]:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                known = name in server.repositories
                if not known:
                    private = asked.get("visibility") == "private" or asked.get("private", False)
                    server.repositories[name] = Repository(private)
                url = f"{server.url}/datasets/{name}"
                self.answer({"url": url, "id": name}, 409 if known else 200)
            case ["api", "validate-yaml"]:
                front = yaml.safe_load(json.loads(body)["content"].split("\n---\n")[0])
                self.answer({"errors": [], "warnings": []}, 200 if isinstance(front, dict) else 400)
            case ["api", "datasets", owner, name, "paths-info", branch]:
                repository = self.repository(owner, name)
                if repository is not None:
                    asked = parse_qs(body.decode())["paths"]
                    self.answer(infos(repository.branches[branch], asked))
            case ["api", "datasets", owner, name, action, branch]:
                repository = self.repository(owner, name)
                if repository is not None:
                    self.change(repository, action, branch, body)
            case ["datasets", _, _, "info", "lfs", "objects", "batch"]:
                asked = json.loads(body)["objects"]
                self.answer({"transfer": "basic", "objects": [self.batch(one) for one in asked]})
            case ["lfs", digest, "complete"]:
                numbers = range(1, len(json.loads(body)["parts"]) + 1)
                content = b"".join(server.parts.pop((digest, number)) for number in numbers)
                self.answer({}, server.store(digest, content))
            case ["lfs", digest, "verify"]:
                self.answer({}, 200 if digest in server.objects else 404)
            case _:
                self.answer({}, 404)

    def do_PUT(self) -> None:
        size, server = int(self.headers.get("Content-Length", 0)), self.server
        body = self.rfile.read(size // 2)
        if server.hold_after is not None and len(server.objects) >= server.hold_after:
            server.held.set()
            server.released.wait()
        body += self.rfile.read(size - len(body))
        parts = self.begin()
        if parts is None or len(body) < size:
            return
        match parts[1:]:
            case ["lfs", digest]:
                self.answer({}, server.store(digest, body))
            case ["lfs", digest, number]:
                server.parts[digest, int(number)] = body
                self.answer({}, 200, {"ETag": f"part-{number}"})

    # --- answers -----------------------------------------------------------------------------

    def begin(self) -> list[str] | None:
        """The parts of the path; None if the request has been refused."""
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        public = path.startswith("/lfs/")
        token = self.headers.get("Authorization")
        if public and token is not None and not path.endswith("verify"):
            self.answer({"error": "the storage must not get the token"}, 400)
        elif not public and token != f"Bearer {TOKEN}":
            message = "Invalid credentials in Authorization header"
            self.answer({"error": message}, 401, {"X-Error-Message": message})
        elif self.server.status:
            self.answer({"error": "as the test wants it"}, self.server.status)
        else:
            return [unquote(part).removesuffix(".git") for part in path.split("/")]
        return None

    def repository(self, owner: str, name: str) -> Repository | None:
        found = self.server.repositories.get(f"{owner}/{name}")
        if found is None:
            self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        return found

    def tree(self, files: dict[str, bytes]) -> None:
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        page = sorted(files)[start : start + PAGE]
        entries = [
            {"type": "file", "path": path, "size": len(files[path]), "oid": git_hash(files[path])}
            for path in page
        ]
        path = urlsplit(self.path).path
        after = f'<{self.server.url}{path}?recursive=True&cursor={start + PAGE}>; rel="next"'
        self.answer(entries, 200, {"Link": after} if start + PAGE < len(files) else {})

    def folder(self, files: dict[str, bytes], folder: str) -> None:
        start = f"{folder}/" if folder else ""
        inner = [path.removeprefix(start) for path in files if path.startswith(start)]
        names = {start + path.partition("/")[0] for path in inner}
        self.answer(infos(files, sorted(names)), 200 if names else 404)

    def file(self, content: bytes) -> None:
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1] if last else content
        self.send_response(206 if last else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{git_hash(content)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def change(self, repository: Repository, action: str, branch: str, body: bytes) -> None:
        if action == "branch":
            known = branch in repository.branches
            repository.branches.setdefault(branch, dict(repository.branches["main"]))
            self.answer({}, 409 if known else 200)
        elif branch not in repository.branches:
            self.answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif action == "preupload":
            files = repository.branches[branch]
            self.answer({"files": [mode(one, files) for one in json.loads(body)["files"]]})
        elif action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            self.commit(repository, branch, lines, "/".join(self.path.split("/")[2:5]))

    def commit(
        self, repository: Repository, branch: str, lines: list[dict[str, Any]], name: str
    ) -> None:
        files = dict(repository.branches[branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    self.answer({"error": f"LFS pointer of {value['path']} has no object"}, 400)
                    return
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.branches[branch] = files
        repository.commits.append(lines[0]["value"]["summary"])
        number = f"{len(repository.commits):040x}"
        url = f"{self.server.url}/{name}/commit/{number}"
        self.answer({"success": True, "commitOid": number, "commitUrl": url})

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        digest, size, base = asked["oid"], asked["size"], f"{self.server.url}/lfs"
        if digest in self.server.objects:
            return {"oid": digest, "size": size}
        upload: dict[str, Any] = {"href": f"{base}/{digest}"}
        if size > PART:
            numbers = range(1, -(-size // PART) + 1)
            header = {f"{number:05d}": f"{base}/{digest}/{number}" for number in numbers}
            upload = {
                "href": f"{base}/{digest}/complete",
                "header": {"chunk_size": str(PART), **header},
            }
        verify = {"href": f"{base}/{digest}/verify"}
        return {"oid": digest, "size": size, "actions": {"upload": upload, "verify": verify}}

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in {**sent, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Write no log."""


def infos(files: dict[str, bytes], paths: list[str]) -> list[dict[str, Any]]:
    """What the hub tells of files and folders."""
    found: list[dict[str, Any]] = []
    for path in paths:
        if path in files:
            size, oid = len(files[path]), git_hash(files[path])
            found.append({"type": "file", "path": path, "size": size, "oid": oid})
        elif any(other.startswith(f"{path}/") for other in files):
            found.append({"type": "directory", "path": path, "oid": git_hash(path.encode())})
    return found


def mode(asked: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """How a file is to be uploaded, and the digest of the one that is there."""
    path = asked["path"]
    lfs = path.endswith(LFS_SUFFIXES)
    answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
    if path in files:
        known = hashlib.sha256(files[path]).hexdigest() if lfs else git_hash(files[path])
        answer["oid"] = known
    return answer


def git_hash(content: bytes) -> str:
    """The digest that git gives a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub that runs until the end of the block."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
