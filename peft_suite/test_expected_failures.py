import re

from expected_failures import EXPECTED_FAILURES


def test_every_expected_failure_is_of_some_test(request):
    ids = [item.nodeid for item in request.session.items]
    assert not [entry.tests for entry in EXPECTED_FAILURES if not any(re.search(entry.tests, name) for name in ids)]
