"""Open Inference over gRPC: its calls, and the connections that are relayed to the library."""
