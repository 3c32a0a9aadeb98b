"""The generative model. Knows neither privacy nor federation."""
