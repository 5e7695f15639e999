"""A coverage-guided fuzzer (atheris) for the parsers of untrusted input: each input is parsed or rejected with a named error.

    python tests/fuzz/parsers.py <parser> -max_total_time=60

Each finding becomes a test of the parser. ``make fuzz`` runs all of them, SECONDS each.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["goemotions"]):
    from goemotions.data import card, sources
    from goemotions.errors import WorkflowError
    from goemotions.metrics import thresholds
    from goemotions.models import tokenizer
    from goemotions.serving.protocols import openinference, schema
    from goemotions.storage import manifest

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
NAMES = ["calm", "dread", "glee"]


def from_file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    def write_and_parse(content: bytes) -> object:
        (FOLDER / name).write_bytes(content)
        return parse(FOLDER / name)

    return write_and_parse


def rows(path: Path) -> object:
    """The rows of a source that is a single file."""
    source = sources._open_files({"train": [path]}, NAMES, path.name, "local", sources.Columns())
    return list(source.splits["train"][1])


def binary(content: bytes) -> object:
    """Open Inference with binary data; the first line replaces the header with the length of the JSON."""
    header, _, body = content.partition(b"\n")
    return openinference.from_rest(body, header.decode("latin-1"))


SOURCES = (
    "train.tsv",
    "train.tsv.gz",
    "train.csv",
    "train.csv.zst",
    "train.csv.zip",
    "train.jsonl",
    "train.parquet",
    "train.arrow",
)
PARSERS: dict[str, Callable[[bytes], object]] = {
    **{name.partition(".")[2]: from_file(name, rows) for name in SOURCES},
    "card": from_file("README.md", lambda path: card.read(path.parent, "source")),
    "thresholds": from_file("thresholds.json", thresholds.read),
    "manifest": from_file("MANIFEST.json", lambda path: manifest.verify(path.parent)),
    "tokenizer": from_file("tokenizer.json", lambda path: tokenizer.TextEncoder.load(path.parent)),
    "v1": lambda content: schema.parse(schema.V1Request, content),
    "v2": lambda content: openinference.from_rest(content, None),
    "binary": binary,
}
BINARY = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}'
SEEDS = {
    "tsv": b"a lake\t0,1\tid1\n",
    "csv": b'text,labels\n"a lake","[0, 1]"\n',
    "jsonl": b'{"text": "a lake", "labels": ["calm"]}\n',
    "card": b"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: train.*\n---\n",
    "thresholds": b'{"strategy": "global-0.5", "thresholds": {"calm": 0.5}}',
    "manifest": b'{"files": {"a": {"size": 1, "sha256": "x"}}}',
    "v1": b'{"instances": ["thanks"], "parameters": {"top_k": 3, "threshold": "tuned"}}',
    "v2": b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["thanks"]}]}',
    "binary": f"{len(BINARY)}\n{BINARY}".encode() + b"\x01\x00\x00\x00a",
}


def main() -> None:
    parse = PARSERS[sys.argv.pop(1)]
    logging.disable(logging.CRITICAL)

    def parse_once(content: bytes) -> None:
        try:
            parse(content)
        except WorkflowError as error:
            if "\n" in str(error):
                raise ValueError("the message of an error has more than one line") from error

    atheris.Setup(sys.argv, parse_once)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print("\n".join(PARSERS))
    else:
        corpus = FOLDER / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(filter(None, [SEEDS.get(sys.argv[1])])):
            (corpus / str(number)).write_bytes(seed)
        sys.argv.append(str(corpus))
        main()
