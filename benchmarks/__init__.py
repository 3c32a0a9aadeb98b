"""One script per question. Results with date and machine are in ``results/``."""
