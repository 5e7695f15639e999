"""The command line ``goemotions``: the steps, prediction, the registered model, and the commands of the package pipelines.

Completion in the shell is click's own: ``eval "$(_GOEMOTIONS_COMPLETE=bash_source goemotions)"``, or zsh_source, fish_source.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import TextIO

import click

from goemotions.cli import prediction, steps
from goemotions.cli.data import data
from goemotions.cli.in_cluster import in_cluster
from goemotions.cli.keys import keys
from goemotions.cli.model import export_hf, model
from goemotions.cli.monitoring import monitor
from goemotions.errors import WorkflowError, printable
from goemotions.serving import logs

# Packages add commands by entry points of this group; the library itself knows nothing of Kubeflow Pipelines.
PLUGINS = "goemotions.commands"
OURS = ("goemotions", "components", "pipelines")


class Commands(click.Group):
    """A group of commands that other packages add to by entry points."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*self.commands, *(plugin.name for plugin in _plugins() if _load(plugin))})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in self.commands:
            return self.commands[name]
        loaded = next((command for plugin in _plugins() if plugin.name == name and (command := _load(plugin))), None)
        if loaded is None and name in ("pipeline", "stack"):
            raise WorkflowError(
                f"`goemotions {name}` is not installed: run `make setup` in a checkout, or install the package with the extras "
                "train, serve, pipeline and local"
            )
        return loaded


def _plugins() -> list[EntryPoint]:
    return list(entry_points(group=PLUGINS))


def _load(plugin: EntryPoint) -> click.Command | None:
    """The command of an entry point; None if its package is left out, as in the image of the predictor."""
    try:
        command: click.Command = plugin.load()
    except ModuleNotFoundError:
        return None
    return command


@click.group(cls=Commands)
@click.version_option(package_name="goemotions")
def commands() -> None:
    """From a multi-label text data set to served, versioned classifiers."""


for command in (*steps.COMMANDS, *prediction.COMMANDS, data, model, export_hf, keys, in_cluster, monitor):
    commands.add_command(command)


def protect_terminal(stream: TextIO) -> None:
    """Leaves control characters of stored or given content out of what a stream shows, if it is a terminal."""
    if stream.isatty():
        write = stream.write
        stream.write = lambda text: write(printable(click.unstyle(text)))  # type: ignore[method-assign]


def main() -> None:
    """Runs a command. An error that a user can act on becomes one line and exit code 1."""
    if os.getpid() == 1:
        # The first process of a container gets no signal that it has no handler for. Other processes end as abruptly.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    logs.configure()
    protect_terminal(sys.stdout)
    for noisy in ("httpx", "botocore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        commands(prog_name="goemotions", auto_envvar_prefix="GOEMOTIONS")
    except WorkflowError as error:
        message = str(error)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"the disk is full at {error.filename or 'the output'}: free space or write elsewhere"
        elif error.filename is None:
            raise
        else:
            message = f"{error.filename}: {error.strerror}: check the path"
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        message = f"the package {error.name} is not installed: install goemotions with the extra that needs it"
    click.echo(f"goemotions: {printable(message)}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
