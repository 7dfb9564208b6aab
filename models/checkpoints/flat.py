"""A pickle and nothing else: detectron2's model zoo (`.pkl`, numpy arrays), and caffe2's before it."""

from __future__ import annotations

from models.checkpoints.contents import Opened
from models.checkpoints.machine import Machine
from models.checkpoints.opcodes import load
from models.checkpoints.part import Part


def read(file: Part) -> Opened:
    """
    Raises:
        CheckpointError: not a pickle, or one that lies.
    """
    machine = Machine(file)
    tree = load(machine)
    return Opened(tree, "pickle", tuple(sorted(machine.foreign)))
