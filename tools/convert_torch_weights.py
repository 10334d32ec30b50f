"""Convert checkpoints between the released PyTorch layout and ours.

    python tools/convert_torch_weights.py import --source RELEASED --target OURS [--only llm,hubert,pitch,style,vocoder] [--model base|expressive]
    python tools/convert_torch_weights.py export --source OURS --target RELEASED [--only ...]
    python tools/convert_torch_weights.py verify --source RELEASED --target OURS [--only ...] [--model ...]

RELEASED: a released tree (`speech_tokenizer/`, `spiritlm_model/`), one of its folders, the folder of the one part that `--only` names, or a
Hugging Face Llama directory, whose vocabulary is then extended for `--model`. For `--only hubert` the folder may hold any fairseq HuBERT
(`*.pt`) with k-means centroids (`*_L11_km500.bin`, `km.bin`, `*kmeans*.npy`): if the name does not say the layer, `--layer` does.
OURS: a checkpoint directory; for export also a training run's step. PyTorch is not needed; where it is installed, `verify` also runs
both networks of every part on the same input.
Exit code 2: the arguments cannot be used. 1: the conversion failed; the target is as it was.
"""

import argparse
import pathlib
import signal
import sys

import tqdm

from spirit_jax.checkpoint import CheckpointError
from spirit_jax.convert import jobs
from spirit_jax.convert.formats.files import ConversionError
from spirit_jax.convert.verification.verify import TOLERANCE, Verified, verify
from spirit_jax.vocabulary import VocabularyError

PROG = "convert_torch_weights.py"
BAD_ARGUMENT, FAILED_JOB = 2, 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="import | export | verify")
    for name, help_ in (
        ("import", "released PyTorch files to our checkpoint directory"),
        ("export", "our checkpoint directory, or a step, to released PyTorch files"),
        ("verify", "compare every tensor of both sides, and what the networks compute where PyTorch is installed"),
    ):
        command = commands.add_parser(name, help=help_, allow_abbrev=False)
        command.add_argument("--source", type=pathlib.Path, required=True, help="directory to read")
        command.add_argument(
            "--target", type=pathlib.Path, required=True, help="directory to write (verify: to compare with)"
        )
        command.add_argument(
            "--only", type=lambda text: text.split(","), help=f"comma-separated among {','.join(jobs.ONLY)}"
        )
        if name != "export":
            command.add_argument(
                "--model", choices=sorted(jobs.MODELS), help="which language model, or which to extend a Llama to"
            )
            command.add_argument(
                "--layer",
                type=int,
                help="of HuBERT, that k-means centroids are of, if their file's name has no L11 or so",
            )
        if name != "verify":
            command.add_argument("--dry-run", action="store_true", help="check everything and list it, write nothing")
            command.add_argument(
                "--overwrite", action="store_true", help="replace the converted parts of a target that exists"
            )
    return parser.parse_args(arguments)


def table(rows: list[tuple], head: tuple) -> str:
    """Columns aligned, numbers to the right."""
    cells = [tuple(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(head))]
    lines = (
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def check(rows: list[Verified], source: pathlib.Path, target: pathlib.Path) -> None:
    """Prints the table; an error if a tensor differs or a network is off by more than rounding."""
    networks = ["-" if row.network is None else f"{row.network:.1e}" for row in rows]
    head = ("part", "tensors", "bytes", "equal", "sha256", "network", "tolerance")
    print(table([(*row[:5], network, TOLERANCE) for row, network in zip(rows, networks, strict=True)], head))
    if "-" in networks:
        print("note: -: install torch and transformers to compare the networks too")
    wrong = [row.part for row in rows if row.equal != "yes"]
    if wrong:
        raise ConversionError(f"{', '.join(wrong)}: tensors differ between {source} and {target}")
    wrong = [row.part for row in rows if row.network is not None and not row.network <= TOLERANCE]
    if wrong:
        raise ConversionError(f"{', '.join(wrong)}: the networks of {source} and {target} give different outputs")


def run(arguments: argparse.Namespace) -> None:
    source, target = arguments.source, arguments.target
    if arguments.command == "verify":
        with tqdm.tqdm(unit="B", unit_scale=True, desc="compared", disable=None) as bar:
            rows = verify(source, target, arguments.only, arguments.model, arguments.layer, bar.update)
        check(rows, source, target)
        return
    if target.exists() and not (arguments.overwrite or arguments.dry_run):
        raise jobs.UsageError(f"--target {target} exists; choose another, or say --overwrite to replace its parts")
    if arguments.command == "import":
        planned = jobs.plan_import(source, arguments.only, arguments.model, arguments.layer)
    else:
        planned = jobs.plan_export(source, arguments.only)
    print(
        table(
            [(j.name, j.source, j.place, j.tensors, j.nbytes) for j in planned],
            ("part", "from", "to", "tensors", "bytes"),
        )
    )
    for note in (note for job in planned for note in job.notes):
        print(f"note: {note}")
    if arguments.dry_run:
        print(f"dry run: nothing written to {target}")
        return
    with tqdm.tqdm(total=sum(job.nbytes for job in planned), unit="B", unit_scale=True, disable=None) as bar:
        jobs.run(planned, target, arguments.overwrite, bar.update)
    print(f"wrote {target}")


def main(arguments: list[str] | None = None) -> None:
    parsed = parse(arguments)
    # As Ctrl-C: what was begun is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run(parsed)
    except (jobs.UsageError, FileExistsError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        sys.exit(BAD_ARGUMENT)
    except (ConversionError, CheckpointError, VocabularyError, OSError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        sys.exit(FAILED_JOB)
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted; {parsed.target} is as it was", file=sys.stderr)
        sys.exit(FAILED_JOB)


if __name__ == "__main__":
    main()
