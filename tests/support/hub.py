"""A stand-in for the Hugging Face hub."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from tests.support import http_server


def use_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process take its models from a hub at an address, with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@contextlib.contextmanager
def serve(repositories: Mapping[str, Path], commit: str = "") -> Iterator[tuple[str, list[str]]]:
    """Serves repositories, each with the files of a folder. Yields the hub's address and the requested paths.

    They have one commit, or every revision if it is not given. Requests for names that begin with ``failing`` are responded to
    with 503, those for ``silent`` not at all, and files in a folder ``refused`` with 403.
    """
    requested: list[str] = []
    ended = threading.Event()

    class Hub(http_server.Handler):
        def do_GET(self) -> None:
            path = unquote(self.path).partition("?")[0]
            requested.append(path)
            name = next((name for name in repositories if f"/{name}/" in f"{path}/"), "")
            # Nothing, or revision, tree or resolve, then a revision, and a file of it.
            rest = path.partition(f"/{name}/")[2] or "revision/main"
            kind, revision, *file = rest.split("/", 2)
            if "/silent" in path:
                ended.wait(60)
                self.close_connection = True
            elif "/failing" in path:
                self.send(503)
            elif "/refused/" in path:
                self.send(403)
            elif not name:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif commit and revision not in (commit, "main"):
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                content = self.content_of(name, kind, commit or revision, *file)
                tag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.send(200, content, {"ETag": tag, "X-Repo-Commit": commit or revision})

        def content_of(self, name: str, kind: str, sha: str, file: str = "") -> bytes:
            folder = repositories[name]
            if kind == "resolve":
                return (folder / file).read_bytes()
            sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
            if kind == "revision":
                return json.dumps(
                    {"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in sorted(sizes)]}
                ).encode()
            return json.dumps(
                [{"type": "file", "path": path, "size": sizes[path], "oid": "0"} for path in sorted(sizes)]
            ).encode()

        do_HEAD = do_GET

    with http_server.running(http_server.Server(Hub)) as server:
        try:
            yield server.url, requested
        finally:
            ended.set()
