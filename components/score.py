"""Score one share of the shards."""

from components import component


@component
def score(output: str, share: str, pods: int, threads: int) -> str:
    """Scores every ``pods``-th shard of the plan, from that of ``share`` on, that is missing; returns ``share``."""
    from goemotions.prediction import shards

    # Whoever can write to the output can put another plan there, with another input and another bundle.
    digest, _, number = share.partition("/")
    shards.score(output, digest=digest, share=(int(number), pods), threads=threads or None)
    return share
