"""Fewer bits: a graph in fp16 or int8, what had to stay in fp32, and what it costs in accuracy.

    pictures.py     pictures of a folder, placed as the server places them
    parts.py        which modules of a network may compute in fp16
    half.py         fp16 in PyTorch: those modules, less the ones that measurement puts back (islands)
    layers.py       the layers of a graph that int8 is for
    quantise.py     int8 in the graph: quantise and dequantise around those layers
    sensitivity.py  which of them must stay as they are, measured one by one
    proof.py        parity and golden sample of a graph in fewer bits
    accuracy.py     AP on annotated pictures, before and after
    lower.py        the steps of the export, in order

fp16 is chosen module by module in PyTorch, so that every exporter target sees the same types. int8 is a change to the
graph file, so that `model.onnx` and `model.trt.onnx` go through the same function.
"""
