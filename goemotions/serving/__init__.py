"""The predictor server: one bundle behind V1, V2 and gRPC. The only place that imports kserve.

| modules | what they have |
|---|---|
| server, workers | start, drain and end; several processes |
| service | what all protocols share: a request for predictions, or for explanations |
| limits, metrics, logs | options; what is counted; the log |
| lazy_kserve | the import of single modules of kserve |

The way of a request, folder by folder:

=============  ===========================================================================================================
``admission``  ``listening`` accepts the connections of a port, ``connections`` bounds how many are open; ``turns`` and
               ``shares`` of addresses, so that no client keeps others out
``http``       ``connection`` and ``bodies`` bound what a client may send, hold and wait for; ``rest`` has the routes
               of V1 and V2, ``openapi`` describes them; ``page`` is the one for people
``grpc``       ``relay`` and ``frames`` do the same for its connections, ``calls`` and ``wire`` for its calls; ``servicer``
               has the methods, ``server`` starts and stops
``protocols``  ``schema`` has the fields of the JSON; ``openinference`` makes texts of the tensors of V2, and tensors
               of results, over both; ``request_ids``
``batching``   ``queue`` admits requests and gives out their texts in turn, to the threads of ``batcher``, which
               tokenize, make batches, and run the engine
``traffic``    ``counters`` of what is predicted; ``request_log`` and ``shadow``, samples for the store and a challenger
=============  ===========================================================================================================
"""

from goemotions.serving import lazy_kserve

lazy_kserve.install()
