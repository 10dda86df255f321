"""Pages that a test opens are closed when it ends; those of module fixtures stay."""

from collections.abc import Iterator

import pytest
from browser import closing_pages


@pytest.fixture(autouse=True)
def pages_closed() -> Iterator[None]:
    with closing_pages():
        yield
