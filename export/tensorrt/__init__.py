"""TensorRT engines: `model.plan` from `model.trt.onnx`.

    package.py    which builder is installed, and what it can do
    profiles.py   which shapes the engine must take, from the manifest
    options.py    what a builder is asked for besides
    building.py   the twin in, an engine out
    listening.py  what the builder says meanwhile
    worker.py     ... in a process of its own, because a compiler may take its process with it
    reading.py    what the built engine computes in, layer by layer
    naming.py     which module of the model a node of the graph came from
    passport.py   what the manifest says of the engine
    builds.py     `make trt-build`: an engine of every architecture

Nothing here imports torch, and nothing imports TensorRT before somebody asks for an engine.
"""
