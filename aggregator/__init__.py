"""What runs in the untrusted centre. Sees sums."""
