"""After the deployment: drift of the traffic (``drift``), reasons to train again, and the steps of a rollout (``rollout``).

| modules | what they have |
|---|---|
| retraining | whether there is a reason to train |
| counters, exposition, http, prometheus_api | what servers and Prometheus have counted, and how it is read |
"""
