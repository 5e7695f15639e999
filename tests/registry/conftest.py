"""Registration compares latencies; few rounds are enough where they decide nothing."""

from collections.abc import Iterator

import pytest

from goemotions.evaluation import latency


@pytest.fixture(scope="package", autouse=True)
def few_rounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 5)
        yield
