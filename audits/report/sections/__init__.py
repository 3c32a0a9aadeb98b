"""A report's content in words: sections made of blocks, one file for each family."""
