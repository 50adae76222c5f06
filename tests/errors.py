"""Errors by their exact words."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def golden(errors: Sequence[tuple[Callable[[], Any], type[Exception], str]]) -> Callable[..., None]:
    """A test that each call raises its error with exactly this text: ``test_errors = golden(ERRORS)``."""

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(("call", "error", "text"), errors, ids=range(len(errors)))
    def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == text

    return test_errors
