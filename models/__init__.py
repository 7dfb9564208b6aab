"""PyTorch architectures, one per file; `models.blocks` holds the layers they share."""
