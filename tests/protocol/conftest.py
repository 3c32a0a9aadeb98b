"""Machines are shared: no property test fails for being slow."""

import os

import pytest
from hypothesis import settings

settings.register_profile("cloister-protocol", deadline=None, max_examples=60)
settings.load_profile("cloister-protocol")


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    """Files of tests need not survive a crash of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
