"""Write a bundle.

python -m export MODULE:BUILDER ...     from a PyTorch model and its weights
python -m export adopt FILE.onnx ...    from a graph that exists already
"""

from __future__ import annotations

import sys

try:
    import onnx  # noqa: F401
    import torch  # noqa: F401
except ModuleNotFoundError:
    print("export needs PyTorch, which serving does without: run 'make setup', or see 'Bring a model' in README.md")
    sys.exit(2)

from export import adopt, from_pytorch
from export.errors import ExportError
from server.errors import StartupError


def main(argv: list[str]) -> int:
    """0 when the bundle stands, 1 when it was refused."""
    try:
        if argv[:1] == ["adopt"]:
            adopt.adopt(adopt.parse(argv[1:]))
        else:
            from_pytorch.export(from_pytorch.parse(argv))
    except (ExportError, StartupError) as error:
        print(f"not {'adopted' if argv[:1] == ['adopt'] else 'exported'}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
