"""Nuclei in microscopy pictures (BBBC038): `python -m training.nuclei --help`."""
