"""Split the input into shards."""

from components import component


@component
def plan_scoring(
    input: str, output: str, version: str, model_name: str, column: str, all_scores: bool, shard_rows: int, pods: int
) -> list[str]:
    """Writes the plan into the output and returns the shares, one per pod that gets a shard: the plan's digest and a number."""
    from goemotions.prediction import plans

    plan = plans.plan(
        input, output, version, model_name=model_name, column=column, all_scores=all_scores, shard_rows=shard_rows
    )
    return [f"{plan.digest}/{number}" for number in range(min(pods, len(plan.shards)))]
