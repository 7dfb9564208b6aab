"""What each code base means by its configuration, and what it calls its weights: one file each.

A dialect has

    spec(config)     its own configuration, as a dictionary, in our terms
    INPUT            how its published models resize pictures
    POOL             how it pools from a pyramid
    NAMES            what its weights are called, see `names.py`
    IGNORED          (pattern, reason) pairs: keys that a checkpoint may have and nobody needs
"""
