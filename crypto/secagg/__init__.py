"""Secure aggregation, one protocol, whole: both sides, their messages, their order."""
