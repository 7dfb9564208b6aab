"""Files with weights, read without running anything that is in them.

A PyTorch checkpoint is a pickle, and a pickle is a program: whoever loads one with `pickle` or `torch.load` runs it.
Here the program is read, and never obeyed.

    opcodes, machine   the bytes of a pickle -> a tree of plain values; a call becomes a note of what was called with
    what allowed    the few notes that mean something to us: a dictionary, a tensor in a storage, a numpy array
    zipped, legacy, tar, flat, safe   the containers that such a tree lies in, and where the numbers lie
    contents   which branch of the tree holds the weights, and what else is told
    dialect    whose key names these are
    fit        weights into a module, or exactly why not

Numbers stay in the file until a tensor of them is wanted, so the optimizer's half of a checkpoint is never read.
`models/weights.py` is the door.
"""
