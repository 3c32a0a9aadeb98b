"""Integers and bytes: keys, frames, secret sharing, masks, secure aggregation.

Knows neither models nor rounds of learning.
"""
