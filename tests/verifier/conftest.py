"""What the tests of the verifier share."""

import pytest


@pytest.fixture(autouse=True)
def few_attempts(request, monkeypatch):
    """A line that mends a formula is sought for long where it is asked for: in `test_mended`."""
    if request.node.path.name != "test_mended.py":
        from funcnet.verifier.diagnosis import mended  # pytest reads this file before annotations are checked

        monkeypatch.setattr(mended, "ATTEMPTS", 25)
        monkeypatch.setattr(mended, "TOGETHER", 10)
