"""The Prometheus metrics. Worker processes share theirs through files in the folder ``PROMETHEUS_MULTIPROC_DIR``."""

from __future__ import annotations

import functools
import os

from kserve.metrics import PREDICT_HIST_TIME
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, exposition, multiprocess

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DIFFERENCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

# The formats that scrapers may accept; the library fails on versions that it does not expect.
PLAIN, OPENMETRICS = "text/plain", "application/openmetrics-text"
# Statuses in metrics only: nginx's for a client that disconnected before the response, and that of a gRPC connection that sends too
# many frames without effect, HTTP/2's ENHANCE_YOUR_CALM.
CLIENT_GONE, FLOOD = 499, 420
# That of a request whose connection was refused, or the rest of it, and has counted it.
COUNTED = 0
# Of what this server never does, whoever asks for it.
UNSUPPORTED = 501
# The label ``reason`` of a rejected request, by its status.
REASONS = {
    400: "malformed",
    408: "slow",
    413: "too-large",
    414: "url-too-large",
    415: "content-type",
    FLOOD: "flood",
    429: "overloaded",
    431: "head-too-large",
    CLIENT_GONE: "client-gone",
    500: "failed",
    UNSUPPORTED: "unsupported",
    503: "unavailable",
    504: "timeout",
}

REQUEST_SECONDS = Histogram(
    "goemotions_request_seconds", "From the head of a request to its response", ["protocol", "code"], buckets=SECONDS
)
# KServe's own metric, which its dashboards and alerts read.
PREDICT_SECONDS = PREDICT_HIST_TIME
QUEUE_SECONDS = Histogram(
    "goemotions_queue_seconds", "From the admission of a request to a batch with texts of it", buckets=SECONDS
)
QUEUE_TEXTS = Gauge("goemotions_queue_texts", "Texts in the queue", multiprocess_mode="livesum")
QUEUE_TOKENS = Gauge("goemotions_queue_tokens", "Tokens of the texts in the queue, estimated", multiprocess_mode="livesum")
ENGINE_SECONDS = Histogram("goemotions_engine_seconds", "Scoring of one batch", buckets=SECONDS)
BATCH_TEXTS = Histogram("goemotions_batch_texts", "Texts per batch", buckets=SIZES)
BATCH_TOKENS = Histogram("goemotions_batch_tokens", "Tokens per batch, padding included", buckets=TOKENS)
REQUEST_TEXTS = Histogram("goemotions_request_texts", "Texts per request", buckets=SIZES)
TRUNCATED = Counter("goemotions_truncated_texts_total", "Texts that exceeded the maximum length and were cut")
# The traffic, which `goemotions monitor` compares with the reference of the bundle; ``traffic.TrafficCounters`` increases them.
SCORED_TEXTS = Counter("goemotions_scored_texts_total", "Texts that were scored", ["version"])
PREDICTIONS = Counter(
    "goemotions_predictions_total", "Texts with a label at the tuned thresholds, whatever was requested", ["version", "label"]
)
TOTAL_SCORES = Counter("goemotions_label_scores_total", "Sum of the scores of a label", ["version", "label"])
PREDICTED_SCORES = Counter(
    "goemotions_predicted_label_scores_total", "Sum of the scores of a label over the texts with it", ["version", "label"]
)
SCORES = Counter(
    "goemotions_score_bins_total", "Texts by the score of a label: bin is the upper bound", ["version", "label", "bin"]
)
FEATURES = Counter(
    "goemotions_text_features_total",
    "Texts by tokens, tokens_per_word and unknown_tokens (bin is the upper bound), by script and by truncated",
    ["version", "feature", "bin"],
)
# All workers of a server set the same, so that one that is replaced changes nothing.
STARTED = Gauge(
    "goemotions_start_time_seconds", "When the server was started, by the clock of its host", multiprocess_mode="livemostrecent"
)
REFERENCE_TEXTS = Gauge(
    "goemotions_reference_texts", "Validation texts of the bundle", ["version"], multiprocess_mode="livemostrecent"
)
REFERENCE_PREDICTIONS = Gauge(
    "goemotions_reference_predictions",
    "Validation texts of the bundle with a label at the tuned thresholds",
    ["version", "label"],
    multiprocess_mode="livemostrecent",
)
REJECTED = Counter("goemotions_rejected_requests_total", "Rejected requests", ["reason"])
REQUESTS = Counter("goemotions_requests_total", "Requests, by who is to blame if they failed", ["protocol", "outcome"])
CONNECTIONS = Gauge("goemotions_connections", "Open connections", ["protocol"], multiprocess_mode="livesum")
CLOSED = Counter("goemotions_closed_connections_total", "Connections that the server closed", ["reason"])
ACCEPT_ERRORS = Counter(
    "goemotions_accept_errors_total", "Connections that the system had no file for, or could not accept", ["error"]
)
SHADOW_REQUESTS = Counter("goemotions_shadow_requests_total", "Copies of requests for the challenger", ["outcome"])
SHADOW_TEXTS = Counter(
    "goemotions_shadow_texts_total",
    "Texts whose labels were compared with the challenger's, or that it rejected",
    ["version", "labels"],
)
SHADOW_LABELS = Counter(
    "goemotions_shadow_label_differences_total", "Texts that have the label from one of the two only", ["version", "label"]
)
SHADOW_SCORES = Histogram(
    "goemotions_shadow_score_difference", "Largest difference of a score, per text", ["version"], buckets=DIFFERENCES
)
LOGGED = Counter("goemotions_request_log_rows_total", "Answers and feedback in the request log", ["kind"])
LOG_DROPPED = Counter("goemotions_request_log_dropped_rows_total", "Rows that are not in the request log", ["reason"])
# Prometheus sees no increase in the first value of a series: those that alerts read begin at 0.
for _reason in REASONS.values():
    REJECTED.labels(_reason)
for _reason in ("queue", "disk"):
    LOG_DROPPED.labels(_reason)
LOG_DROPPED_FILES = Counter(
    "goemotions_request_log_dropped_files_total", "Files that made room, or could not be read or written"
)
LOG_UPLOADED = Counter("goemotions_request_log_uploaded_files_total", "Files of the request log that the store has")
MODEL = Gauge(
    "goemotions_model_info",
    "The model that is served, and what computes its scores",
    ["version", "run", "profile", "engine", "device", "precision"],
    multiprocess_mode="livemostrecent",
)

# The series that every request increases, looked up once each.
series_of_requests, series_of_request_seconds = functools.cache(REQUESTS.labels), functools.cache(REQUEST_SECONDS.labels)


def outcome(status: int) -> str:
    """Who is to blame: ``ok`` for nobody, ``client``, ``overload``, or ``server``, on which alerts rest."""
    if status < 400:
        return "ok"
    return "overload" if status == 429 else "client" if status < 500 or status == UNSUPPORTED else "server"


def count(protocol: str, status: int) -> None:
    """Counts a request by its outcome, and a rejected one by its reason, too.

    Too much feedback of a client is no overload: alerts and rollouts would take it for a fault of the server.
    """
    is_feedback = (protocol, status) == ("feedback", 429)
    series_of_requests(protocol, "client" if is_feedback else outcome(status)).inc()
    if reason := "feedback" if is_feedback else REASONS.get(status):
        REJECTED.labels(reason).inc()


def render(accepted: str) -> tuple[bytes, str]:
    """The metrics of all worker processes in the format of a content type, and its full content type."""
    encode, content_type = exposition.choose_encoder(accepted)
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return encode(registry), content_type
