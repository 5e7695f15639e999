"""Open Inference over gRPC: its calls, and the connections that are relayed to the library."""

import logging
import os

# The library's own errors are of clients that left, and of their wrong fields, past the limits of ``logs``; those of handlers are
# logged by ``calls``. It reads the variable when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
