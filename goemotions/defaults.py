"""Default values that several places share: the command line, the parameters of the pipelines, and the library's functions.

Plain constants; this module imports nothing. A value that only one place needs stays there.
"""

# What is registered, and where.
MODEL_NAME = "goemotions"
EXPERIMENT = "goemotions"
BUCKET = "goemotions"
STORE = f"s3://{BUCKET}/"
REFERENCE = "champion-cpu"
# Retirement keeps as many of the newest versions per variant, and versions that are younger.
KEPT_VERSIONS = 3
KEPT_DAYS = 7.0
KEPT_TRAINED_DAYS = 90.0
TRAINER_IMAGE = "goemotions-trainer"
CREDENTIALS_SECRET = "goemotions"
SIGNING_SECRET = "goemotions-signing"

# Data: on one machine the sample, on a cluster all of it.
SOURCE = "sample"
CLUSTER_SOURCE = "hub:google-research-datasets/go_emotions:simplified"
UNLABELLED, UNLABELLED_POLICIES = "quarantine", ("quarantine", "keep")
MAX_QUARANTINED = 0.05
TEXT_COLUMN = "text"
LABELS_COLUMN = ""
# Of the rows of train, for each split that a source lacks.
SPLIT_SHARE = 0.1
SPLIT_SEED = 0
# A label that at least this share of the raters gave is a label of the text.
MAJORITY = 0.5

# Training. 0 epochs: as many as the profile has. On one machine small models, on a cluster those that need GPUs.
PROFILES = ("minilm", "minilm-3l")
CLUSTER_PROFILES = ("roberta-large", "distilbert")
EPOCHS = 0
SEED = 0
PRECISION = "auto"
CHECKPOINT_MINUTES = 10.0

# How long a step of a pipeline waits for a store, a registry or a hub that does not respond.
OUTAGE_SECONDS = 900

# Thresholds, and the choice of the winners.
THRESHOLD_STRATEGY = "best"
TARGET_PRECISION = 0.7
TARGET_RECALL = 0.8
LATENCY_BUDGET_MS = 25.0
# Of micro AUC and of macro F1: what a faster model for CPUs may lose and still win.
QUALITY_TOLERANCE = 0.005

# Explanations: removals of words per text. With the text itself they are a batch of eight, which takes less than five times as long as
# a text alone.
REMOVALS = 7

# Prices per hour of a core and of a GPU: round figures of the order of on-demand list prices in US dollars.
CPU_HOUR_PRICE = 0.05
GPU_HOUR_PRICE = 4.0

# A champion that is older, in days, is trained again; on unchanged data, drift trains again after so many days.
MAX_AGE_DAYS = 90.0
DRIFT_COOLDOWN_DAYS = 28.0

# Batch scoring.
SHARD_ROWS = 100_000

# Serving.
HOST = "127.0.0.1"
PORT = 8080
# Requests with this header are copies and no traffic; with this value, that of a rollout's texts, they are not logged either.
COPY_HEADER, COPY_OF_ROLLOUT = "goemotions-copy", "rollout"

# Drift: the window, and the false alarms that are accepted per month.
MONITORING_WINDOW = "1d"
FALSE_ALARMS_PER_MONTH = 0.1
