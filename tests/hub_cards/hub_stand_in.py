"""A stand-in of the Hugging Face Hub on the loopback interface: what huggingface_hub needs to push and load, no more.

Repositories live in memory as commits (path to bytes). Faults are injected per request with [`StandInHub.fail`].
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKENS = {"hf_user": "user", "hf_other": "other"}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# Metadata of cards for which the Hub takes just these values.
METADATA = {
    "base_model_relation": {"adapter", "finetune", "merge", "quantized"},
    "size_categories": {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"},
    "sdk": {"gradio", "docker", "static"},
    "colorFrom": COLOURS,
    "colorTo": COLOURS,
}


@dataclass
class Repo:
    """One repository: its commits, oldest first, and where its branches are."""

    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """What a matching request gets instead of its answer, so many times."""

    pattern: re.Pattern[str]
    status: int
    times: int


class StandInHub:
    """Starts on creation; ``close`` stops it.

    Attributes
    ----------
    repos : dict
        (type, id) to [`Repo`]; type is "model", "space" or "dataset".
    requests : list of str
        ``"METHOD /path"`` of every request, in order.
    ranges : dict
        Path to the ranges that were asked of it.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: dict[str, list[str]] = {}
        self.faults: list[Fault] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # Large files are on another host, to which the client takes no token and where it expects no commit.
        self.storage_url = self.url.replace("127.0.0.1", "localhost")
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, status: int, times: int = 1000) -> None:
        """Answer requests whose ``"METHOD /path"`` matches with a status.

        Status 0 cuts the connection before the answer, -1 in the middle of it.
        """
        self.faults.append(Fault(re.compile(pattern), status, times))

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "model", **settings: Any) -> Repo:
        """Put a repository in place."""
        repo = self.repos[kind, repo_id] = Repo(**settings)
        repo.commit("main", dict(files), "initial commit")
        return repo


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet", ".png"))


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub
    cut = False

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        name = f"{self.command} {path}"
        self.hub.requests.append(name)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        for fault in self.hub.faults:
            if fault.times > 0 and fault.pattern.search(name):
                fault.times -= 1
                if fault.status < 0:
                    self.cut = True
                    break
                if fault.status == 0:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._send(fault.status, b'{"error": "injected"}', {"X-Error-Message": "injected fault"})
                return
        with suppress(BrokenPipeError, ConnectionResetError):
            try:
                self._route(path, query, body)
            except _Refusal as refusal:
                headers = {"X-Error-Code": refusal.code} if refusal.code else {}
                headers |= {"X-Error-Message": refusal.message} if refusal.message else {}
                self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    # ---------------------------------------------------------------- routes

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        routes = (
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate_yaml),
            (r"GET /api/whoami-v2", lambda body: self._json({"name": self._user(required=True), "type": "user"})),
            (r"GET /api/(model|space|dataset)s/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"GET /api/(model|space|dataset)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree),
            (r"POST /api/(model|space|dataset)s/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"POST /api/(model|space|dataset)s/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"POST /api/(model|space|dataset)s/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"POST /(?:(space|dataset)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"PUT /lfs/([0-9a-f]{64})", self._lfs_put),
            (r"(?:GET|HEAD) /lfs/([0-9a-f]{64})", self._lfs_get),
            (r"(?:GET|HEAD) /(?:(space|dataset)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )
        for pattern, route in routes:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                route(*match.groups(), body)
                return
        raise _Refusal(404, message=f"no such route: {self.command} {path}")

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        user = self._user(required=True)
        owner = wanted.get("organization") or user
        if owner != user:
            raise _Refusal(403, message="You don't have the rights to create a repository under this namespace")
        kind, repo_id = wanted.get("type") or "model", f"{owner}/{wanted['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.hub.url}/{prefix}{repo_id}", "name": repo_id, "id": "1"}
        if (kind, repo_id) in self.hub.repos:
            self._json(answer | {"error": "You already created this repo"}, status=409)
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repo = self.hub.repos[kind, repo_id] = Repo(private=private, sdk=wanted.get("sdk"))
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._json(answer)

    def _validate_yaml(self, body: bytes) -> None:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        metadata = (yaml.safe_load(front[1]) if front else None) or {}
        errors = [
            {"message": f'"{key}" must be one of {", ".join(sorted(allowed))}'}
            for key, allowed in METADATA.items()
            if not {str(value) for value in _as_list(metadata.get(key))} <= allowed
        ]
        self._json({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def _info(self, kind: str, repo_id: str, revision: str | None, body: bytes) -> None:
        repo, sha = self._revision(kind, repo_id, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        self._json({"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "siblings": siblings})

    def _tree(self, kind: str, repo_id: str, revision: str, folder: str | None, body: bytes) -> None:
        repo, sha = self._revision(kind, repo_id, revision)
        entries = []
        for path, content in sorted(repo.commits[sha].items()):
            if folder and not path.startswith(folder + "/"):
                continue
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if _is_lfs(path):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def _preupload(self, kind: str, repo_id: str, revision: str, body: bytes) -> None:
        self._writable(kind, repo_id)
        files = [
            {"path": f["path"], "uploadMode": "lfs" if _is_lfs(f["path"]) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _lfs_batch(self, kind: str | None, repo_id: str, body: bytes) -> None:
        self._writable(kind or "model", repo_id)
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.storage_url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, message="the content is not what was announced")
        self.hub.blobs[oid] = body
        self._send(200, b"")

    def _commit(self, kind: str, repo_id: str, revision: str, body: bytes) -> None:
        repo = self._writable(kind, repo_id)
        if revision not in repo.refs:
            raise _Refusal(404, "RevisionNotFound", "no such branch")
        files = dict(repo.commits[repo.refs[revision]])
        summary = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                summary = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise _Refusal(400, message="LFS object missing")
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, files, summary)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"})

    def _branch(self, kind: str, repo_id: str, branch: str, body: bytes) -> None:
        repo = self._writable(kind, repo_id)
        if branch in repo.refs:
            raise _Refusal(409, message="Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        self._json({})

    def _resolve(self, kind: str | None, repo_id: str, revision: str, path: str, body: bytes) -> None:
        repo, sha = self._revision(kind or "model", repo_id, revision)
        content = repo.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if content is None:
            self._send(404, b"Entry not found", headers | {"X-Error-Code": "EntryNotFound"})
        elif _is_lfs(path):
            digest = hashlib.sha256(content).hexdigest()
            self.hub.blobs[digest] = content
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            self._send(302, b"", headers | linked | {"Location": f"{self.hub.storage_url}/lfs/{digest}"})
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._send_range(content, headers | {"ETag": f'"{etag}"'})

    def _lfs_get(self, oid: str, body: bytes) -> None:
        self._send_range(self.hub.blobs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    # ---------------------------------------------------------------- access

    def _user(self, *, required: bool = False) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        if required and not token:
            raise _Refusal(401, message="Invalid username or password.")
        return TOKENS.get(token)

    def _revision(self, kind: str, repo_id: str, revision: str) -> tuple[Repo, str]:
        user, repo = self._user(), self.hub.repos.get((kind, repo_id))
        # As on the Hub: who may not see a private repository is told that there is none.
        if repo is None or (repo.private and user != repo_id.split("/")[0]):
            raise _Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if repo.gated and user is None:
            raise _Refusal(401, "GatedRepo", f"Access to model {repo_id} is restricted. You must be authenticated.")
        sha = repo.resolve(revision)
        if sha is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha

    def _writable(self, kind: str, repo_id: str) -> Repo:
        user = self._user(required=True)
        if (kind, repo_id) not in self.hub.repos:
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        if user != repo_id.split("/")[0]:
            raise _Refusal(403, message="Forbidden: you have no write access to this repository")
        return self.hub.repos[kind, repo_id]

    # ---------------------------------------------------------------- answers

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_range(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._send(200, content, headers)
            return
        self.hub.ranges.setdefault(self.path, []).append(wanted[0])
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        if start >= len(content):
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        self._send(206, content[start : end + 1], headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
        if self.cut:
            self.close_connection = True
