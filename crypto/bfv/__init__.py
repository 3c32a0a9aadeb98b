"""Secure aggregation by homomorphic encryption: exact packed BFV, both sides."""
