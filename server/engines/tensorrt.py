"""TensorRT: the runner of `model.plan`, on `execute_async_v3` and nothing between.

One plan, one context for each lane: a context keeps the state of one run, so two of them let one run's copies go on
while another computes. Memory for the largest run of any profile is taken when the engine is opened. For every batch
the narrowest profile that holds its shape is chosen, since that is the one tuned closest to it.

`tensorrt` (10 and 11) and `tensorrt_rtx` have the names used here in common; which of them a plan wants stands in its
passport, and the module is handed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engines import Tensors
from server.engines.device import Device
from server.engines.lanes import Lane, Lanes, Spec, lay_out
from server.errors import DeviceFault, DeviceFull, NoEngine, ShapeRefused

SLOTS = 2  # runs at the same time: one copies while the other computes; a third would wait behind both
Shapes = dict[str, tuple[int, ...]]  # of every input


@dataclass(frozen=True, slots=True)
class Range:
    """One optimisation profile of a plan: which shapes it takes."""

    number: int  # in the plan
    smallest: Shapes
    largest: Shapes

    def holds(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(
            len(shape) == len(self.largest[name])
            and all(
                low <= side <= high
                for low, side, high in zip(self.smallest[name], shape, self.largest[name], strict=True)
            )
            for name, shape in shapes.items()
        )

    def __str__(self) -> str:
        return " ".join(f"{name} {_text(self.smallest[name])} to {_text(self.largest[name])}" for name in self.largest)


class ContextLane(Lane):
    """A lane with the context that runs on it."""

    def __init__(self, device: Device, inputs: int, outputs: int, context: Any) -> None:
        super().__init__(device, inputs, outputs)
        self.context = context
        self.profile = -1  # none was chosen


class TensorRT:
    """An `Engine`.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        plan: the serialised engine, whose sha256 somebody has compared with the manifest's.
        name: the package, as in `seg_model_info`.

    Raises:
        NoEngine: this TensorRT does not take the plan, or it is none of ours.
        DeviceFull: not enough memory for it: for its two contexts, or for the copies.
        DeviceFault: the device failed.
    """

    slots = SLOTS

    def __init__(self, trt: Any, plan: bytes, device: Device, name: str = "tensorrt", slots: int = SLOTS) -> None:
        self.name = name
        self.slots = slots
        try:
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        except TypeError as error:  # what the bindings make of a null pointer
            told = f"{name} {trt.__version__} does not start with this GPU and driver; its own line on stderr says why"
            raise NoEngine(told) from error
        self._runtime.engine_host_code_allowed = False  # a plan may hold code for the host; that is never run
        self._plan = self._runtime.deserialize_cuda_engine(plan)
        if self._plan is None:
            raise NoEngine(
                f"{name} {trt.__version__} does not open model.plan; its own line on stderr says why: make room on the "
                "GPU, or build it again on this machine"
            )
        names = [self._plan.get_tensor_name(index) for index in range(self._plan.num_io_tensors)]
        dtypes = {each: np.dtype(trt.nptype(self._plan.get_tensor_dtype(each))) for each in names}
        is_input = {each: self._plan.get_tensor_mode(each) == trt.TensorIOMode.INPUT for each in names}
        self._inputs = {each: dtype for each, dtype in dtypes.items() if is_input[each]}
        self._outputs = {each: dtype for each, dtype in dtypes.items() if not is_input[each]}
        if not set(self._inputs) <= {"images", "sizes"} or "images" not in self._inputs:
            raise NoEngine(f"model.plan takes {sorted(self._inputs)}, expected images, or images and sizes")
        self._ranges = self._read_ranges()
        contexts = [self._open_context() for _ in range(slots)]
        inputs = max(lay_out({each: (dtype, wide.largest[each]) for each, dtype in self._inputs.items()})[1]
                     for wide in self._ranges)  # fmt: skip
        outputs = self._largest_outputs(device, contexts[0])
        self._lanes = Lanes(slots, lambda: ContextLane(device, inputs, outputs, contexts.pop()))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """
        Raises:
            ShapeRefused: no profile holds the batch.
            DeviceFault: the device failed.
        """
        fed = {name: inputs[name] for name in self._inputs}
        for name, tensor in fed.items():
            if tensor.dtype != self._inputs[name]:
                raise ShapeRefused(f"input '{name}' should be {self._inputs[name]}, got {tensor.dtype}")
        shapes = {name: tensor.shape for name, tensor in fed.items()}
        chosen = self._choose(shapes)
        with self._lanes.take() as lane:
            context = lane.context
            addresses = lane.send(fed)
            if lane.profile != chosen.number:
                _must(context.set_optimization_profile_async(chosen.number, lane.stream), "take a profile")
                lane.profile = chosen.number
            specs = self._prepare(context, shapes)
            offsets = lane.outputs.places(specs)
            addresses |= {name: lane.outputs.address + offset for name, offset in offsets.items()}
            for name, address in addresses.items():
                _must(context.set_tensor_address(name, address), "take an address")
            _must(context.execute_async_v3(lane.stream), "run")
            return lane.fetch(specs, addresses)

    def run_alone(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        return self.run(inputs)

    def give_back(self) -> None:
        """Nothing: what it has is laid out for the largest run, and stays."""

    def close(self) -> None:
        """Contexts, then the plan, then the runtime: the order in which they need each other."""
        self._lanes.close()
        for owned in ("_lanes", "_plan", "_runtime"):
            with contextlib.suppress(AttributeError):
                delattr(self, owned)

    def _read_ranges(self) -> list[Range]:
        """The plan's profiles, the narrowest first."""
        ranges = []
        for number in range(self._plan.num_optimization_profiles):
            bounds = {name: self._plan.get_tensor_profile_shape(name, number) for name in self._inputs}
            smallest = {name: tuple(int(side) for side in bound[0]) for name, bound in bounds.items()}
            largest = {name: tuple(int(side) for side in bound[2]) for name, bound in bounds.items()}
            ranges.append(Range(number, smallest, largest))
        return sorted(ranges, key=lambda wide: float(np.prod(wide.largest["images"], dtype=np.float64)))

    def _choose(self, shapes: Shapes) -> Range:
        for wide in self._ranges:
            if wide.holds(shapes):
                return wide
        asked = ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items())
        raise ShapeRefused(f"{asked}: no profile of the plan holds that; it has {'; '.join(map(str, self._ranges))}")

    def _open_context(self) -> Any:
        context = self._plan.create_execution_context()
        if context is None:  # the rest of its reasons are in a line of TensorRT's own on stderr
            raise DeviceFull(f"{self.name}: create_execution_context: the device has no memory left for this")
        return context

    def _prepare(self, context: Any, shapes: Shapes) -> dict[str, Spec]:
        """Tell a context the shapes of its inputs; what its outputs will be."""
        for name, shape in shapes.items():
            _must(context.set_input_shape(name, shape), "take a shape")
        lacking = context.infer_shapes()
        if lacking:
            raise NoEngine(f"model.plan wants more than images and sizes: {sorted(lacking)}")
        specs = {
            name: (dtype, tuple(int(side) for side in context.get_tensor_shape(name)))
            for name, dtype in self._outputs.items()
        }
        for name, (_, shape) in specs.items():
            if min(shape, default=0) < 0:
                raise NoEngine(f"output '{name}' of model.plan has a size that depends on the picture, {_text(shape)}")
        return specs

    def _largest_outputs(self, device: Device, context: Any) -> int:
        """Bytes of the outputs of the largest run."""
        stream = device.open_stream()
        try:
            sizes = []
            for wide in self._ranges:
                _must(context.set_optimization_profile_async(wide.number, stream), "take a profile")
                device.synchronise(stream)
                specs = self._prepare(context, wide.largest)
                sizes.append(lay_out(specs)[1])
            return max(sizes)
        finally:
            device.close_stream(stream)


def _must(done: bool, what: str) -> None:
    if not done:
        raise DeviceFault(f"TensorRT would not {what}")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
