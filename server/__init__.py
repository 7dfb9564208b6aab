"""maskserve's server: an image comes in by HTTP, COCO run-length masks go out.

The straight line, one file a step:

    bytes -> images.decode -> preprocess.place -> scheduling.submit -> engine.run
          -> manifest.masks.decode -> FORMATS[name] -> JSON
"""

import os

# Before numpy is imported: its products are small, and OpenBLAS' threads would fight with the workers for the cores.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# From 1.29 on ONNX Runtime reports model names and graph hashes to its maker, unless told not to before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
