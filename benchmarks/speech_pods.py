"""The TPUs that the heads of the full-size HuBERT configs name, and the cost of the compiled step there.

    python -m benchmarks.speech_pods [--only TEXT] [--json benchmarks/results/speech_pods.json]

Compiles the first trained part of the cases whose name holds TEXT, by default of all, and keeps the other cases of the
JSON. A line of a config's head is `#   v5e-32   --hubert_1.accumulate 2`: a topology and the options that fit it. No
TPU is needed, and none runs. A case takes minutes.
"""

import argparse
import pathlib
import re

from benchmarks import pods, report
from spirit_jax import config
from spirit_jax.core.files import read_json
from spirit_jax.costmodel.report import Report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.speech_training.compile import compile_part
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.parts import parts

CONFIGS = pods.CONFIGS / "speech"
_LINE = re.compile(r"^#   (v\w+-\d+)\b *(.*)$", re.MULTILINE)


def cases() -> dict[str, tuple[pathlib.Path, str, list[str]]]:
    """The config file, the topology and the command-line options of each case, by name: `CONFIG TOPOLOGY`."""
    return {
        f"{path.stem} {topology}": (path, topology, options.split())
        for path in sorted(CONFIGS.glob("hubert_*.yaml"))
        for topology, options in _LINE.findall(path.read_text())
    }


def compile_case(name: str) -> Report:
    """Compile the training step of the first part of a case."""
    path, topology, options = cases()[name]
    settings = config.load(TrainSpeechConfig, path, options)
    part = parts(settings)[0]
    outline = part.outline()
    assert outline is not None
    return compile_part(part, outline, Topology.parse(topology), settings.mesh)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="compile the cases whose name holds this")
    report.add_option(parser)
    arguments = parser.parse_args()
    where = report.machine()
    path: pathlib.Path | None = arguments.json
    found = read_json(path)["figures"] if path is not None and path.exists() else {}
    for name in cases():
        if arguments.only in name:
            compiled = compile_case(name)
            print(f"{name}\n{compiled}\n", flush=True)
            found[name] = pods.figures(compiled)
            report.write(path, where, {case: found[case] for case in cases() if case in found}, [])


if __name__ == "__main__":
    main()
