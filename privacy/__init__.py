"""Mathematics on vectors: clipping and quantisation. No torch."""
