"""What runs anywhere, on plan, transcripts and public keys alone."""
