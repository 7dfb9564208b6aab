"""Measurements that back the figures in the documentation: `python -m bench.<name>` prints a table."""
