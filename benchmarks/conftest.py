"""Options and models of the pytest-benchmark suite."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import models


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("models")
    group.addoption(
        "--sizes", choices=models.SIZES, default="tiny", help="size of the models (default: tiny)"
    )
    group.addoption("--models", type=int, default=4, help="how many models (default: 4)")
    group.addoption("--rounds", type=int, default=3, help="how often each is timed (default: 3)")


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[models.Suite]:
    """The base and the models on disk, removed at the end."""
    size, count = models.SIZES[_option(request, "sizes")], _option(request, "models")
    with models.written(size, count, folder=tmp_path_factory.mktemp("models")) as written:
        yield written


@pytest.fixture(scope="session")
def tiny_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[models.Suite]:
    """Three tiny models, whatever the size that is timed."""
    with models.written(models.SIZES["tiny"], 3, folder=tmp_path_factory.mktemp("tiny")) as written:
        yield written


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """How often each is timed."""
    return _option(request, "rounds")


def _option(request: pytest.FixtureRequest, name: str) -> Any:
    return request.config.getoption(name)
