"""How much of the campaign is done: a tenth in the test suite, all of it by `make campaign`."""

import os

from hypothesis import HealthCheck, settings

FULL = 10
SCALE = int(os.environ.get("SPTUNE_CAMPAIGN", "1"))


def share(total: int) -> int:
    """The number of cases to try out of those of the full campaign."""
    return max(1, total * SCALE // FULL)


def tries(total: int) -> settings:
    """The settings of a test that tries so many inputs in the full campaign; in the test suite, always the same."""
    return settings(
        max_examples=share(total),
        derandomize=SCALE < FULL,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
