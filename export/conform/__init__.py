"""Conformance: the reference cases of other implementations, run through our models, our graphs and the server's masks.

cases       what lies in a golden folder: weights, picture, raw tensors, detections, settings
systems     how each code base wrote its cases down
matching    detections as sets, masks by IoU, raw tensors by tolerance
compare     one case through every stage
conventions cases without a network: paste, resize, run lengths, RoI pooling
table       the rows that are printed
command     `python -m export conform`
"""
