"""A server with the paths of the Kubeflow Pipelines API (v2beta1) that submitting uses, as a process of its own, state in memory.

Its responses are written by the API's own models. An uploaded package must compile to a PipelineSpec, as on the real server. A run's
steps advance by one state each time the run is requested.
"""

from __future__ import annotations

import email.parser
import email.policy
import itertools
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.support import http_server

TOKEN = "of-the-tests"
IDS = itertools.count(1)
LOG = "epoch 1: 3.1 step/s\nTraceback (most recent call last):\ngoemotions.errors.GateError: the gate refused\n"
WRITER = api.ApiClient()


class State:
    def __init__(self) -> None:
        # Set by tests: allowed users and namespaces, refusals, a login page, the number of dropped requests, and the end of runs.
        self.multi_user = False
        self.namespaces = ["team"]
        self.refuse = 0
        self.refused_paths: list[str] = []
        self.login = False
        self.away = 0
        self.end = "SUCCEEDED"
        self.retried = False
        self.details_lag = 0
        self.seen: list[str] = []
        self.experiments: list[api.V2beta1Experiment] = []
        self.pipelines: list[api.V2beta1Pipeline] = []
        self.versions: list[api.V2beta1PipelineVersion] = []
        self.recurring: list[api.V2beta1RecurringRun] = []
        self.runs: dict[str, api.V2beta1Run] = {}
        self.polls: dict[str, int] = {}
        self.workflows: dict[str, list[Node]] = {}

    def run(self, run_id: str) -> api.V2beta1Run:
        run = self.runs[run_id]
        self.polls[run_id] += 1
        passed = self.polls[run_id] - 1
        models = ((run.runtime_config and run.runtime_config.parameters) or {}).get("models") or ["roberta-large", "distilbert"]
        nodes = self.workflows.setdefault(run_id, workflow(run_id, models, self.end, retried=self.retried))
        last = max(node.rank for node in nodes)
        if passed > last:
            run.state = self.end
        # The details are read from the database some time after the run has ended.
        shown = passed - self.details_lag if run.state in ("SUCCEEDED", "FAILED") else passed
        run.run_details = api.V2beta1RunDetails(task_details=[node.detail(shown) for node in nodes if node.first <= shown + 1])
        return run


class Node:
    """A node of Argo's workflow: it runs from the poll at which the first of its children runs to the one of its rank."""

    def __init__(self, run_id: str, name: str, rank: int, end: str, children: tuple[Node, ...] = (), error: str = "") -> None:
        self.run_id, self.name, self.rank, self.end, self.children, self.error = run_id, name, rank, end, children, error
        self.first = min([rank, *(child.first for child in children)])
        self.pod = f"{run_id}-{next(IDS)}"

    def detail(self, passed: int) -> api.V2beta1PipelineTaskDetail:
        state = "PENDING" if passed < self.first else "RUNNING" if passed <= self.rank else self.end
        began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=self.rank)
        return api.V2beta1PipelineTaskDetail(
            run_id=self.run_id,
            task_id=self.pod,
            pod_name=self.pod,
            display_name=self.name,
            state=state,
            start_time=began if state != "PENDING" else None,
            end_time=began + timedelta(seconds=61) if state not in ("PENDING", "RUNNING") else None,
            error=api.GoogleRpcStatus(code=13, message=self.error) if self.error and state == self.end else None,
            child_tasks=[api.PipelineTaskDetailChildTask(pod_name=child.pod) for child in self.children] or None,
        )


def workflow(run_id: str, models: list[str], end: str, *, retried: bool) -> list[Node]:
    """The nodes of a run as Argo names them under a default retry strategy: every node has its attempts below it."""
    nodes: list[Node] = []

    def add(name: str, rank: int, state: str = "SUCCEEDED", children: tuple[Node, ...] = (), error: str = "") -> Node:
        node = Node(run_id, name, rank, state, children, error)
        nodes.append(node)
        return node

    def step(name: str, rank: int, state: str = "SUCCEEDED") -> tuple[Node, Node]:
        driver = add(f"{name}-driver", rank)
        executor = add("executor", rank, state)
        last = add(f"{name}(1)" if retried and name == "train" else f"{name}(0)", rank, state, (executor,))
        attempts = (last,)
        if retried and name == "train":
            attempts = (add(f"{name}(0)", rank - 1, "FAILED", error="pod deleted"), last)
        return driver, add(name, rank, state, attempts)

    ingest = step("ingest", 0)
    items = []
    for number, _ in enumerate(models):
        train = step("train", 2 + number)
        driver = add(f"iteration-item-driver({number}:{number})", 1)
        items.append(add(f"iteration-item({number}:{number})", 1, "SUCCEEDED", (driver, *train)))
    loop = add("for-loop-1", 1, "SUCCEEDED", (add("for-loop-1(0)", 1, "SUCCEEDED", tuple(items)),))
    register = step("register", 3 + len(models), end)
    add("root", 0, end, (add("root(0)", 0, end, (*ingest, loop, *register)),))
    return nodes


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(http_server.Handler):
    state: State

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        if self.path == "/":
            type(self).state = State()
            return self._send(200, b"{}")
        return self._handle()

    def do_PUT(self) -> None:
        vars(self.state).update(json.loads(self.body()))
        self._send(200, b"{}")

    def _handle(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/tests/state":
            kept = {name: value for name, value in vars(self.state).items() if name not in ("seen", "workflows")}
            return self._send(200, json.dumps(WRITER.sanitize_for_serialization(kept)).encode())
        body = self.body()
        if self.state.away:
            self.state.away -= 1
            self.close_connection = True
            return None
        if self.state.login:
            return self._send(200, b"<!doctype html><title>Log in</title>", "text/html")
        if self.state.refuse:
            return self._error(self.state.refuse, "rpc error: code = PermissionDenied")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "no token")
        if re.fullmatch(r"/apis/v1alpha1/runs/[^/]+/nodes/[^/]+/log", url.path):
            return self._send(200, LOG.encode(), "text/plain")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            response = self._respond(self.command, url.path.removeprefix("/apis/v2beta1/").split("/"), query, body)
        except Refused as error:
            return self._error(error.status, str(error))
        return self._send(200, json.dumps(WRITER.sanitize_for_serialization(response)).encode())

    def _respond(self, method: str, path: list[str], query: dict[str, str], body: bytes) -> Any:
        state = self.state
        if f"{method} {path[0]}" in state.refused_paths:
            raise Refused(400, f"{path[0]} cannot be created")
        match method, *path:
            case "GET", "healthz":
                return api.V2beta1GetHealthzResponse(multi_user=state.multi_user)
            case "GET", "experiments":
                self._require(query.get("namespace", ""))
                listed = _filtered(state.experiments, query)
                return api.V2beta1ListExperimentsResponse(experiments=listed or None, total_size=len(listed))
            case "POST", "experiments":
                created = _read(body, api.V2beta1Experiment)
                self._require(created.namespace or "")
                created.experiment_id = f"experiment-{next(IDS)}"
                state.experiments.append(created)
                return created
            case "GET", "pipelines":
                self._require(query.get("namespace", ""))
                listed = _filtered(state.pipelines, query)
                return api.V2beta1ListPipelinesResponse(pipelines=listed or None, total_size=len(listed))
            case "POST", "pipelines":
                created = _read(body, api.V2beta1Pipeline)
                created.pipeline_id = f"pipeline-{next(IDS)}"
                state.pipelines.append(created)
                return created
            case "GET", "pipelines", pipeline_id, "versions":
                listed = [one for one in _filtered(state.versions, query) if one.pipeline_id == pipeline_id]
                return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=listed or None, total_size=len(listed))
            case "POST", "pipelines", "upload_version":
                spec = _uploaded(self.headers["Content-Type"], body)
                version = api.V2beta1PipelineVersion(
                    pipeline_id=query["pipelineid"],
                    pipeline_version_id=f"version-{next(IDS)}",
                    name=query["name"],
                    display_name=query["name"],
                    pipeline_spec=spec,
                    created_at=datetime.now(UTC),
                )
                state.versions.append(version)
                return version
            case "POST", "runs":
                run = _read(body, api.V2beta1Run)
                self._require_version(run.pipeline_version_reference)
                run.run_id, run.state = f"run-{next(IDS)}", "PENDING"
                state.runs[run.run_id], state.polls[run.run_id] = run, 0
                return run
            case "GET", "runs", run_id if run_id in state.runs:
                return state.run(run_id)
            case "GET", "recurringruns":
                listed = [one for one in state.recurring if one.experiment_id == query["experiment_id"]]
                return api.V2beta1ListRecurringRunsResponse(recurring_runs=listed or None, total_size=len(listed))
            case "POST", "recurringruns":
                recurring = _read(body, api.V2beta1RecurringRun)
                self._require_version(recurring.pipeline_version_reference)
                recurring.recurring_run_id = f"recurring-{next(IDS)}"
                state.recurring.append(recurring)
                return recurring
            case "DELETE", "recurringruns", recurring_id:
                state.recurring = [one for one in state.recurring if one.recurring_run_id != recurring_id]
                return {}
        raise Refused(404, f"{method} {self.path} not found")

    def _require(self, namespace: str) -> None:
        if self.state.multi_user and namespace not in self.state.namespaces:
            raise Refused(403, f"User is not authorized to access namespace {namespace!r}")

    def _require_version(self, reference: api.V2beta1PipelineVersionReference) -> None:
        if reference.pipeline_version_id not in [one.pipeline_version_id for one in self.state.versions]:
            raise Refused(400, f"no version {reference.pipeline_version_id}")

    def _error(self, status: int, message: str) -> None:
        self._send(status, json.dumps({"error": message, "message": message, "code": 7}).encode())

    def _send(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send(status, body, {"Content-Type": content_type})


class _Response:
    """A response as the API's deserializer expects it."""

    def __init__(self, data: str) -> None:
        self.data = data


def _read(body: bytes, model: type) -> Any:
    """A request as its model; a field that the model lacks is refused, as by the real server."""
    content = json.loads(body)
    unknown = set(content) - set(model.attribute_map.values())
    if unknown:
        raise Refused(400, f"unknown field {unknown.pop()}")
    return WRITER.deserialize(_Response(body.decode()), model.__name__)


def _filtered(listed: list[Any], query: dict[str, str]) -> list[Any]:
    for predicate in json.loads(query.get("filter") or '{"predicates": []}')["predicates"]:
        listed = [one for one in listed if getattr(one, predicate["key"]) == predicate["stringValue"]]
    return listed


def _uploaded(content_type: str, body: bytes) -> dict[str, Any]:
    parser = email.parser.BytesParser(policy=email.policy.default)
    message = parser.parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    (part,) = (part for part in message.iter_parts() if part.get_param("name", header="content-disposition") == "uploadfile")
    documents = list(yaml.load_all(part.get_payload(decode=True), Loader=yaml.CSafeLoader))
    try:
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError as error:
        raise Refused(400, f"invalid pipeline spec: {error}") from error
    return {"pipeline_spec": documents[0], "platform_spec": documents[1]}


if __name__ == "__main__":
    Handler.state = State()
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
