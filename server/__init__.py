"""maskserve's server: an image comes in by HTTP, COCO run-length masks go out.

The straight line, one file a step:

    bytes -> images.decode -> preprocess.place -> scheduling.submit -> engine.run
          -> manifest.masks.decode -> FORMATS[name] -> JSON
"""
