"""Findings and figures turned into HTML, JSON and Markdown."""
