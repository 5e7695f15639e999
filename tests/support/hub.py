"""A stand-in for the Hugging Face hub."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants


def use_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process take its models from a hub at an address, with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@contextlib.contextmanager
def serve(repositories: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves repositories, each with the files of a folder at every revision. Yields the hub's address and the requested paths."""
    requested: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path).partition("?")[0]
            requested.append(path)
            name = next((name for name in repositories if f"/{name}/" in path), "")
            if not name:
                self.send_error(404)
                return
            folder, (_, _, rest) = repositories[name], path.partition(f"/{name}/")
            kind, revision, *inside = rest.split("/")
            if kind == "resolve":
                self.reply((folder / "/".join(inside)).read_bytes(), revision, inside[-1])
            elif kind == "tree":
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                listing = [
                    {"type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "oid": "0"}
                    for file in files
                ]
                self.reply(json.dumps(listing).encode(), revision, "tree")
            else:
                self.reply(json.dumps({"id": name, "sha": rest.rpartition("/")[2]}).encode(), revision, "info")

        do_HEAD = do_GET

        def reply(self, content: bytes, commit: str, tag: str) -> None:
            self.send_response(200)
            headers = {"Content-Length": str(len(content)), "ETag": f'"{tag}"', "X-Repo-Commit": commit}
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        server.server_close()
