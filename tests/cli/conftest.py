"""The tiny models, made once a worker."""

from pathlib import Path

import pytest

from tests.evaluation.tiny_family import tiny_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("models"))
