"""The name and version of this software, as transcripts state it."""

SOFTWARE = "cloister 0.1.0"
