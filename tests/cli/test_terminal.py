"""What a command shows: content of a file, a store or a client does not control the terminal, and goes unchanged into a pipe."""

from __future__ import annotations

import io
import logging
import os

import pytest

from goemotions.cli.main import protect_terminal
from goemotions.serving import logs

HARMFUL = "calm\x1b[2J\x1b]0;title\x07\x9b31m\u202edaerd\r\x08 \x1b[31mred\x1b[0m\n"


@pytest.mark.fault("message-unbounded")
def test_a_terminal_shows_no_control_characters_and_a_pipe_gets_every_byte() -> None:
    main, terminal = os.openpty()
    with open(main, "rb", buffering=0) as shown, open(terminal, "w", encoding="utf-8") as stream:
        protect_terminal(stream)
        print(HARMFUL, file=stream, end="", flush=True)
        text = shown.read(1000).decode()
    assert text.endswith("]0;title\ufffd\ufffd31m\ufffddaerd\ufffd\ufffd red\r\n")
    assert not set(text.removesuffix("\r\n")) & set("\x1b\x07\x9b\u202e\r\x08")
    pipe = io.StringIO()
    protect_terminal(pipe)
    print(HARMFUL, file=pipe, end="")
    assert pipe.getvalue() == HARMFUL


@pytest.mark.fault("message-unbounded")
def test_a_record_of_the_log_is_neither_forged_nor_does_it_control_a_terminal() -> None:
    record = logging.LogRecord("goemotions", logging.WARNING, "", 0, "%s is skipped", (HARMFUL + "ERROR root: forged",), None)
    lines = logs.Formatter(logs.FORMAT).format(record).split("\n")
    assert lines[0].startswith("WARNING goemotions: calm\ufffd[2J")
    assert lines[1:] == ["    ERROR root: forged is skipped"]
    assert not set("".join(lines)) & set("\x1b\x07\x9b\u202e\r\x08")
