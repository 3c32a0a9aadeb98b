"""Federations that encrypt, with one process for all of them."""

import os

import pytest

from crypto.bfv.workers import Workers
from tests.aggregator.encrypting import Encrypting


@pytest.fixture(scope="session")
def workers():
    with Workers(num=1) as made:
        yield made


@pytest.fixture
def encrypting(tmp_path, workers, monkeypatch):
    """Return a factory of federations that do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    made = []

    def make(*arguments, **protection):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Encrypting(folder, workers, *arguments, **protection))
        return made[-1]

    yield make
    for each in made:
        each.transcript.close()


@pytest.fixture
def made(encrypting):
    return encrypting()
