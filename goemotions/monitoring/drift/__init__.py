"""Drift: the traffic of a served version against the reference that its bundle carries.

| modules | what they have |
|---|---|
| window | how much the counters of servers grew in some time, as ``Traffic`` |
| server_scrapes, prometheus_series, scored | where traffic is read: a server, a Prometheus, outputs of batch scoring |
| comparison | the tests, and their false alarms |
| monitor, scheduled | a report of one window; the same as a step of the pipeline |
"""
