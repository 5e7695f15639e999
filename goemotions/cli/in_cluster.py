"""``goemotions in-cluster``: a command on the registered model as a Job in the cluster."""

from __future__ import annotations

import sys
from typing import Any

import click

from goemotions import defaults
from goemotions.cli.options import setting
from goemotions.errors import BadArgument

# Those that need nothing of this machine.
COMMANDS = ("model", "predict", "score")


@click.command("in-cluster", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@setting(
    "--image",
    default=f"{defaults.TRAINER_IMAGE}:latest",
    help="The trainer's image; `make ... IN_CLUSTER=1` gives that of the commit.",
)
@click.option(
    "--namespace",
    envvar="KF_PIPELINES_NAMESPACE",
    default="",
    help="Namespace of the Job, that of the steps and of their secret; default: the current context's.",
)
@click.option("--secret", default=defaults.CREDENTIALS_SECRET, show_default=True, help="Secret and config map of the steps.")
@click.option(
    "--signing-secret", default=defaults.SIGNING_SECRET, show_default=True, help="Secret of the step register, if there is one."
)
@click.option(
    "--service-account", default="", help="For commands that use Kubernetes (deploy, status), such as default-editor."
)
@click.option("--timeout-seconds", type=click.IntRange(min=1), default=3600, show_default=True, help="Longest duration.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def in_cluster(command: tuple[str, ...], **settings: Any) -> None:
    """Run COMMAND (model, predict or score) as a Job in the cluster, beside the registry and the store.

    It is followed to its end, and its exit code is passed on. A manifest is written here. Such as:
    goemotions in-cluster model promote challenger-cpu
    """
    from goemotions.cli.model import write_manifest
    from goemotions.deployment import job

    if command[0] not in COMMANDS:
        raise BadArgument(f"`{command[0]}` is no command for a cluster: choose from {', '.join(COMMANDS)}")
    code, change = job.run(command, job.Settings(**settings), click.echo)
    if change and not code:
        write_manifest(change)
    sys.exit(code)
