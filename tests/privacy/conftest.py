"""Machines are shared: no property test fails for being slow."""

from hypothesis import settings

settings.register_profile("cloister-privacy", deadline=None, max_examples=100)
settings.load_profile("cloister-privacy")
