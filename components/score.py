"""Score one share of the shards."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def score(output: str, share: str, pods: int, threads: int) -> str:
    """Scores every ``pods``-th shard of the plan, from that of ``share`` on, that is missing; returns ``share``."""
    from goemotions.prediction import shards

    # Whoever can write to the output can put another plan there, with another input and another bundle.
    digest, _, number = share.partition("/")
    shards.score(output, digest=digest, share=(int(number), pods), threads=threads or None)
    return share
