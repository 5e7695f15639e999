"""A rollout on one machine: a server of the champion and one of the challenger, a proxy in front of them, and a load."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from goemotions import defaults
from goemotions.deployment.traffic import ProxySplit
from goemotions.errors import WorkflowError
from goemotions.monitoring.rollout import answers
from goemotions.monitoring.rollout import rollout as rollouts
from goemotions.monitoring.rollout import state as rollout_state
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sources import Scrape
from goemotions.registry import model_registry, promotion
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.model_registry import Version
from goemotions.registry.promotion import Move
from goemotions.storage import layout
from pipelines import stack
from pipelines.server import PREDICTOR, end_with_parent, serving

CLIENTS = 4


def run(
    reference: str,
    plan: Plan,
    *,
    model_name: str = defaults.MODEL_NAME,
    rate: float = 40.0,
    fault: str = "",
    restart: bool = False,
    show: Callable[[str], None],
    **gate: Any,
) -> Move:
    """Rolls a version out between two servers on this machine, or goes on with its rollout.

    Args:
        reference, plan: an alias or a version number, and the steps.
        rate: requests per second, of one text of the sample each.
        fault: what is wrong with the server of the version, one of ``options.FAULTS``; empty for nothing.
        restart: begin again, whatever was left of an unfinished rollout.
        gate: other options of ``promotion.promote``.

    Raises:
        WorkflowError: as ``monitoring.rollout.rollout.run``; or a server did not start.
    """
    version = model_registry.get_version(model_name, reference)
    name, location = f"this-machine-{version.variant}", BundleLocation.parse(version.source)
    place = layout.rollout(location.store, model_name, name)
    left = None if restart else rollout_state.unfinished(place, model_name, version, name)
    # One that was killed between alias and traffic has the version as champion already.
    left = left if left and left.version == version.number else None
    champion = left.champion if left else _champion(model_name, version)
    texts = answers.read_texts()
    stack.FOLDER.mkdir(exist_ok=True)
    with contextlib.ExitStack() as opened:
        servers = {
            number: opened.enter_context(
                served(number, ["--bundle", number, "--model-name", model_name], stack.FOLDER, command)
            )
            for number, command in ((champion, PREDICTOR), (version.number, with_fault(fault)))
        }
        address = opened.enter_context(proxied(champion, servers))
        for number, server in servers.items():
            show(f"version {number}{' (champion)' if number == champion else ''}: {server}")
        show(f"proxy: {address}, {rate:g} requests per second")
        split = ProxySplit(address, name=name)

        @functools.cache
        def begin_load() -> None:
            opened.enter_context(loaded(address, f"/v1/models/{model_name}:predict", texts, rate))

        def show_look(line: str) -> None:
            # The gate measures latency before the first look.
            begin_load()
            show(line)

        source = Scrape(split.targets)
        options = {"model_name": model_name, "texts": texts, **gate}
        if left and left.phase == rollout_state.RUNNING:
            # The proxy is a new one.
            split.deploy(version.number, left.percent)
        # Nothing is left of an unfinished rollout of another version: its servers and its proxy have ended.
        restart = left is None
        return rollouts.run(version.number, split, source, plan, restart=restart, show=show_look, **options)


def _champion(model_name: str, version: Version) -> str:
    """The number of the champion that a version is compared with.

    Raises:
        WorkflowError: there is none, or the version is it.
    """
    champion = promotion.champion(model_name, version.variant)
    if champion is None or champion.number == version.number:
        state = f"version {version.number} is it" if champion else "there is none"
        raise WorkflowError(
            f"a rollout needs a champion and another version ({state}): train and register one more by `make run`"
        )
    return champion.number


def with_fault(fault: str) -> tuple[str, ...]:
    """What Python runs for the server of a version with a fault; with none, that of any other."""
    return ("-m", "pipelines.bad_version", fault, *PREDICTOR[2:]) if fault else PREDICTOR


@contextlib.contextmanager
def served(number: str, options: Sequence[str], folder: Path, command: Sequence[str] = PREDICTOR) -> Iterator[str]:
    """A server of a version; yields its address when it is ready.

    Raises:
        ServerFailed: it did not become ready.
    """
    settings = ["--threads", "1", "--version-number", number]
    with serving([*command, *options, *settings], folder / f"serve-{number}.log") as running:
        yield running.address


@contextlib.contextmanager
def proxied(stable: str, servers: dict[str, str]) -> Iterator[str]:
    """A proxy of servers by the versions' numbers; yields its address."""
    pairs = [f"{number}={address}" for number, address in servers.items()]
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines.proxy", stable, *pairs], stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent
    ) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


@contextlib.contextmanager
def loaded(
    address: str,
    path: str,
    texts: Sequence[str],
    rate: float,
    seen: Callable[[int, Any, float], None] = lambda status, content, seconds: None,
) -> Iterator[None]:
    """Sends requests of one text each at a rate per second; ``seen`` gets the status, the content and the seconds of each."""
    ended, host = threading.Event(), address.removeprefix("http://")

    def send(first: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        began = time.monotonic()
        for count, text in enumerate(itertools.islice(itertools.cycle(texts), first, None, CLIENTS)):
            if ended.wait(max(0.0, began + count * CLIENTS / rate - time.monotonic())):
                return
            try:
                body, sent = json.dumps({"instances": [text]}), time.perf_counter()
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                seen(response.status, json.loads(response.read()), time.perf_counter() - sent)
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()

    threads = [threading.Thread(target=send, args=(first,), daemon=True) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
