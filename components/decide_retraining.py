"""Decide whether there is a reason to train."""

from components import component


@component
def decide_retraining(
    digest: str,
    store: str,
    model_name: str,
    manual_reason: str,
    max_age_days: float,
    drift_cooldown_days: float,
    pipeline_run: str,
) -> str:
    """Returns the kinds of the reasons, or an empty text if nothing is trained; the decision is logged to MLflow."""
    from goemotions.monitoring import retraining
    from goemotions.storage import layout

    policy = retraining.Policy(max_age_days, drift_cooldown_days)
    drift_report = layout.monitoring(store, model_name)
    decision = retraining.decide_run(pipeline_run, digest, drift_report, manual_reason, model_name, policy)
    print(f"retraining: {decision}")
    return decision.kinds
