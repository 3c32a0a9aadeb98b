"""What a silo's process does for its own secrets."""

import resource

from silo import join


def test_a_crash_leaves_no_dump(monkeypatch):
    said = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4096, 8192))
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: said.append(limit))
    join.leave_no_dump()
    assert said == [(resource.RLIMIT_CORE, (0, 8192))]
