"""The predictor server: one bundle behind V1, V2 and gRPC. The only place that imports kserve.

The way of a request, step by step:

==========  ==============================================  ====================================================================
listen      ``listening``                                   accepts the connections of a port, or refuses them
connection  ``http``; ``relay`` and ``frames`` for gRPC     bounds what one connection may send, hold and wait for
body        ``bodies``; ``grpc`` for calls                  bounds what arrives, and how many requests there are
parse       ``rest``, ``schema``; ``wire``                  JSON; messages of gRPC
            ``openinference``                               tensors of both to texts
predict     ``service``                                     what all protocols share
queue       ``queue``                                       admits requests, and gives out their texts in turn
batch       ``batching``                                    the threads that tokenize, make batches, and run the engine
answer      ``rest``, ``openinference``, ``grpc``           back to the protocol
count       ``metrics``, ``traffic``                        outcomes and durations; what is predicted
            ``request_log``, ``shadow``                     samples of the answers for the store, and of the requests for a challenger
==========  ==============================================  ====================================================================

What several steps share: ``limits`` (the options), ``connections`` (all that are open), ``shares`` and ``turns`` (of addresses, so
that no client keeps others out). Around them: ``server`` (start, drain, end), ``workers`` (several processes), ``logs``, ``openapi``,
``page``, ``request_ids`` and ``lazy_kserve``.
"""

from goemotions.serving import lazy_kserve

lazy_kserve.install()
