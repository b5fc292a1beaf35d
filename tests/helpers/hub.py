"""The Hugging Face hub on this machine, as far as huggingface_hub's own client asks for it: a model's repository is
made, files are committed to it (large ones as LFS objects), listed and fetched."""

import base64
import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """repos: by id, the files of its newest commit. fetched: (id, file) of all that was downloaded."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.fetched: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, repo: str) -> str:
        lines = [f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in sorted(self.repos[repo].items())]
        return hashlib.sha1("\n".join(lines).encode()).hexdigest()


@contextmanager
def running() -> Generator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def give(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def say(self, values: Any, status: int = 200) -> None:
        self.give(status, json.dumps(values).encode(), Content_Type="application/json")

    def missing(self, code: str = "RepoNotFound") -> None:
        self.give(404, b"", X_Error_Code=code)

    def split(self) -> tuple[list[str], str, dict[str, bytes] | None]:
        """The path's parts; the repository that it names, and its files."""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        return parts, repo, self.server.repos.get(repo)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts, repo, files = self.split()
        if files is None:
            return self.missing()
        commit = self.server.commit_of(repo)
        if parts[0] != "api":  # someone/model/resolve/main/a/file
            name = "/".join(parts[4:])
            if name not in files:
                return self.missing("EntryNotFound")
            if self.command == "GET":
                self.server.fetched.append((repo, name))
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.give(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=commit)
        if parts[4:5] == ["tree"]:
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in sorted(files.items())
            ]
            return self.say(rows)
        siblings = [{"rfilename": name} for name in sorted(files)]
        self.say({"_id": repo, "id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False})

    def do_PUT(self) -> None:  # an LFS object
        self.server.objects[self.path.rpartition("/")[2]] = self.body()
        self.give(200)

    def do_POST(self) -> None:
        data = self.body()
        parts, repo, files = self.split()
        if parts == ["api", "repos", "create"]:
            asked = json.loads(data)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.repos.setdefault(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
            return self.say({"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})
        if files is None:
            return self.missing()
        if parts[-1] == "batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/{repo}/lfs/{one['oid']}"}}}
                for one in json.loads(data)["objects"]
            ]
            return self.say({"transfer": "basic", "objects": objects})
        if parts[4] == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(data)["files"]
            ]
            return self.say({"files": modes})
        assert parts[4] == "commit", self.path
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        commit = self.server.commit_of(repo)
        self.say({"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True})
