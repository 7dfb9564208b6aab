"""From a trained PyTorch model to a bundle that is proven equal to it: `python -m export --help`."""
