"""The allow list: the names in a pickle that mean something to us, and what.

Each stands for a value, made here by our own few lines. All other names become `Foreign`: a note that somebody was to
be called, with what.
"""

from __future__ import annotations

from typing import Any

import torch

from models.checkpoints.arrays import Array, DType, check_shape
from models.checkpoints.errors import CheckpointError
from models.checkpoints.values import Blob, Foreign, Name, Storage, TensorView, brief, put, tensor_view

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
DTYPES = {f"torch.{name}": getattr(torch, name) for name in (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
)}  # fmt: skip

ALLOWED = frozenset(
    (
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.Counter",
        "builtins.dict",
        "builtins.list",
        "builtins.set",
        "builtins.frozenset",
        "builtins.bytes",
        "builtins.bytearray",
        "_codecs.encode",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        *DTYPES,
        *(f"torch.{where}{name}" for name in STORAGES for where in ("", "cuda.", "storage.")),
    )
)

# Nothing that a checkpoint needs lives there, and what attacks are made of does.
HOSTILE_MODULES = frozenset((
    "_posixsubprocess", "asyncio", "bdb", "code", "codeop", "commands", "cProfile", "ctypes", "ensurepip", "ftplib",
    "http", "imp", "importlib", "marshal", "nt", "os", "pdb", "pickle", "pip", "platform", "popen2", "posix",
    "profile", "pty", "runpy", "shutil", "smtplib", "socket", "ssl", "subprocess", "sys", "tempfile", "threading",
    "timeit", "trace", "urllib", "venv", "webbrowser", "zipimport",
))  # fmt: skip
HOSTILE_BUILTINS = frozenset((
    "__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "globals", "input", "open",
    "setattr", "vars",
))  # fmt: skip


def plain_name(module: str, name: str) -> Name:
    """As Python 3 and numpy 1 call it: Python 2 had `__builtin__`, numpy 2 has `numpy._core`."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}.get(module, module)
    return Name(f"{module}.{name}".replace("numpy._core.", "numpy.core."))


def is_hostile(name: Name) -> bool:
    module, _, rest = name.full.partition(".")
    return module in HOSTILE_MODULES or (module == "builtins" and rest in HOSTILE_BUILTINS)


def call(name: str, args: tuple[Any, ...]) -> Any:
    """What the file gets for a call.

    Raises:
        CheckpointError: a tensor or an array that cannot be.
    """
    match name, args:
        case "collections.OrderedDict" | "builtins.dict" | "collections.Counter", ():
            return {}
        case "collections.OrderedDict" | "builtins.dict", (list() as pairs,):
            return _from_pairs(pairs)
        case "collections.Counter" | "builtins.dict", (dict() as counts,):
            return counts
        case "collections.defaultdict", (Name() | None,) | ():
            return {}
        case "builtins.list" | "builtins.set" | "builtins.frozenset", ():
            return []
        case "builtins.list" | "builtins.set" | "builtins.frozenset", (list() as values,):
            return values  # a set is a list here: nothing in it is hashed, and nothing is copied
        case "builtins.bytes" | "builtins.bytearray", ():
            return b""
        case "builtins.bytearray", (bytes() | Blob() as data,):
            return data
        case "builtins.bytearray" | "_codecs.encode", (str() | Blob() as text, "latin1" | "latin-1"):
            return text  # `Array` takes a text for its Latin-1 bytes; most are long, and none is copied here
        case "torch.Size", (tuple() as size,):
            return size
        case "torch.device", _:
            return None  # where it lived is of no interest
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (
            Storage() as storage,
            at,
            size,
            step,
            *_,
        ):
            return tensor_view(storage, at, size, step)
        case "torch._utils._rebuild_tensor_v3", (Storage() as storage, at, size, step, _, _, Name() as dtype, *_):
            return tensor_view(storage, at, size, step, _dtype(dtype))
        case (
            "torch.nn.parameter.Parameter"
            | "torch._utils._rebuild_parameter"
            | "torch._utils._rebuild_parameter_with_state"
            | "torch._utils._rebuild_device_tensor_from_cpu_tensor"
            | "torch._utils._rebuild_device_tensor_from_numpy",
            (TensorView() | Array() as data, *_),
        ):
            return data
        case "torch._tensor._rebuild_from_type_v2", (Name() as rebuild, _, tuple() as parts, *_):
            inside = rebuild.full.startswith("torch._utils.")  # and not itself, again and again
            return call(rebuild.full, parts) if inside else Foreign(name, args)
        case "numpy.core.multiarray._reconstruct", (Name(full="numpy.ndarray"), tuple(), _):
            return Array()
        case "numpy.core.multiarray.scalar", (DType() as dtype, data):
            return Array((), dtype, data=data)
        case "numpy.core.numeric._frombuffer", (bytes() | Blob() as data, DType() as dtype, shape, order):
            return Array(check_shape(shape), dtype, fortran=order == "F", data=data)
        case "numpy.dtype", (str() as code, *_):
            return DType(code[-64:].lstrip("<=|>"), big_endian=code.startswith(">"))
        case "copyreg._reconstructor", (Name() as kind, *_):
            return Foreign(kind.full)
        case _:
            return Foreign(name, args)


def build(value: Any, state: Any) -> None:
    """What the file gets for handing `value` a state.

    Raises:
        CheckpointError: `value` is nothing that has one.
    """
    match value, state:
        case Foreign(), _:
            value.state = state
        case Array(), (_, shape, DType() as dtype, fortran, data) | (shape, DType() as dtype, fortran, data):
            value.shape, value.dtype, value.fortran, value.data = check_shape(shape), dtype, bool(fortran), data
        case DType(), (_, str() as order, inside, names, fields, *_):
            value.big_endian = order == ">"
            if (inside, names, fields) != (None, None, None):
                value.code = "record"
        case dict() | TensorView(), _:
            pass  # attributes of a dictionary (`_metadata`) or a parameter
        case _:
            raise CheckpointError(
                f"it hands a state to {brief(value)}, which has none; the file is damaged or hostile, do not load it "
                "elsewhere"
            )


def storage_dtype(name: Any) -> torch.dtype:
    """Of a storage by the name of its class.

    Raises:
        CheckpointError: no storage of numbers that we know.
    """
    if isinstance(name, Name) and name.full.startswith("torch.") and name.full in ALLOWED:
        dtype = STORAGES.get(name.full.rpartition(".")[2])
        if dtype is not None:
            return dtype
    raise CheckpointError(
        f"a tensor's numbers should be in one of torch's storages, found {brief(name)}; quantised and foreign ones "
        "are not read: save the weights as plain float tensors"
    )


def _dtype(name: Name) -> torch.dtype:
    dtype = DTYPES.get(name.full)
    if dtype is None:
        raise CheckpointError(f"a tensor is of type {brief(name)}, which is not read; save the weights as float32")
    return dtype


def _from_pairs(pairs: list[Any]) -> dict[Any, Any]:
    """Python 2 pickled an OrderedDict as a list of pairs. The list is used up, so that no file makes many of one."""
    found: dict[Any, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise CheckpointError(f"a dictionary is made of {brief(pair)} where pairs belong; the file is damaged")
        put(found, pair[0], pair[1])
    pairs.clear()
    return found
