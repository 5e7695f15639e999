"""The pipelines: the order of the steps, their parameters, and how they run on this machine and on a cluster.

| modules | what they have |
|---|---|
| training, scoring, monitoring | the pipelines |
| parameters, placement, resources | values from a command line; the pods of the steps; their CPU, memory and GPUs |
| cli, options | the commands `goemotions pipeline` and `goemotions stack` |
| package, client, submit, progress, retries | on a cluster: compiled, connected, started, followed; the retries of Argo |
| local, kfp_local, unfinished | on this machine: run, adapted to it, resumed |
| run_folder, console, remaining | what such a run wrote, what it prints, how long it still takes |
| stack, server, demo | MLflow and S3 on this machine; a predictor server; both at work |
| rollout, proxy, bad_version | a rollout on this machine, and a version with a fault for it |
"""
