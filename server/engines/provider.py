"""Which of ONNX Runtime's providers runs a graph on a GPU, how it is set, and what it calls the memory that we bind."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Provider:
    """As in `InferenceSession(providers=...)` and `IOBinding.bind_input(device_type=...)`."""

    name: str
    memory: str
    options: dict[str, str] = field(default_factory=dict)


CUDA = Provider(
    "CUDAExecutionProvider",
    "cuda",
    {
        "use_tf32": "0",  # it would keep 10 bits of each factor's 23, and the golden sample is fp32 in full
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all of them at every new shape, inside a request
    },
)
