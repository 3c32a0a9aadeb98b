"""Mathematics on vectors and events: clipping, quantisation, noise, accounting."""
