"""Machines are shared: no property test fails for being slow."""

from hypothesis import settings

settings.register_profile("cloister-protocol", deadline=None, max_examples=60)
settings.load_profile("cloister-protocol")
