"""Bundles and their versions in MLflow: tracking, registration and promotion.

| modules | what they have |
|---|---|
| mlflow_client | MLflow's client, its retries and errors |
| tracking, model_run, costs | runs; what steps log to that of a model; what a run used and cost |
| model_registry, changes, rollouts | versions and aliases; who moved them; unfinished rollouts |
| bundle, consistency, trust, references | reading a bundle; whether its files fit, and who stored it; from an alias to a folder |
| candidates, assembly, mlflow_model, trained | what the steps wrote; a bundle of it; its MLmodel; what people download |
| registration, registered_versions | the step register, and the file that it hands on |
| challenger, promotion | the comparison with the champion; the moves of its alias |
| retirement, orphans | removal of what nothing refers to |
| hugging_face | a trained model for the hub |
"""
