"""The fast forward on layers of any size."""

from collections.abc import Iterator

import pytest

from tests.support.fast import nothing_too_small


@pytest.fixture(autouse=True, scope="module")
def every_layer_is_large_enough_for_the_fast_forward() -> Iterator[None]:
    with nothing_too_small():
        yield
