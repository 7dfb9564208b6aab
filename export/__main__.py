"""Write bundles, and prove them.

python -m export MODULE:BUILDER ...     a bundle from a PyTorch model and its weights
python -m export adopt FILE.onnx ...    a bundle from a graph that exists already
python -m export verify BUNDLE          is it what it was, and does it answer here as it promised
python -m export plan BUNDLE            a TensorRT engine from it
python -m export conform --golden DIR   reference cases of other implementations, through ours
"""

from __future__ import annotations

import sys

try:
    import onnx  # noqa: F401
    import torch  # noqa: F401
except ModuleNotFoundError:
    print("export needs PyTorch, which serving does without: run 'make setup', or see 'Bring a model' in README.md")
    sys.exit(2)

from export import adopt, from_pytorch, plan, verify
from export.errors import ExportError
from export.progress import silence_exporter
from server.errors import StartupError

FAILED = {"adopt": "not adopted", "verify": "not verified", "plan": "not built", "conform": "not run"}


def main(argv: list[str]) -> int:
    """0 when the bundle stands, 1 when it was refused or a case fails, 2 when the question makes no sense."""
    silence_exporter()
    word = argv[0] if argv and argv[0] in FAILED else ""
    try:
        match word:
            case "adopt":
                adopt.adopt(adopt.parse(argv[1:]))
            case "verify":
                verify.verify(verify.parse(argv[1:]))
            case "plan":
                plan.plan(plan.parse(argv[1:]))
            case "conform":
                from export.conform import command  # reads YAML, which exporting does without

                return command.conform(command.parse(argv[1:]))
            case _:
                from_pytorch.export(from_pytorch.parse(argv))
    except (ExportError, StartupError) as error:
        print(f"{FAILED.get(word, 'not exported')}: {error}", file=sys.stderr)
        return 2 if word == "conform" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
