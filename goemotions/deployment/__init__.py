"""Registered versions on KServe InferenceServices.

| modules | what they have |
|---|---|
| kserve | the commands deploy and restart, and the step deploy |
| cluster, inference_service | the Kubernetes API; InferenceServices as objects, with another version |
| live_service, problems | waits for what KServe makes of a change; what stops it |
| traffic, status | the split between two versions; registry, manifest and cluster side by side |
| isvc, model_folder, manifest_files | versions and images in the manifest; manifests of another model; YAML with its comments |
| node_pools, cluster_keys, job | nodes with GPUs; keys of the local overlay; a command as a Job |
"""
