"""Score one share of the shards."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def score(output: str, share: int, pods: int, threads: int) -> int:
    """Scores every ``pods``-th shard of the plan, from the ``share``-th on, that is missing; returns ``share``."""
    from goemotions.prediction import shards

    shards.score(output, share=(share, pods), threads=threads or None)
    return share
