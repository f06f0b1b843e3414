"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """The folder with mnist/, celeba/ and celeba-half/, named by GANFAST_TEST_DATA."""
    folder = os.environ.get("GANFAST_TEST_DATA")
    if not folder:
        pytest.skip("GANFAST_TEST_DATA is not set: it names a folder with mnist/, celeba/ and celeba-half/")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests neither see nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GANFAST_DATA", raising=False)
        yield
