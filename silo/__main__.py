"""``python -m silo``."""

from silo.cli import main

if __name__ == "__main__":
    main()
