"""The converter's command line: `python -m spirit_jax.convert import | export | verify | merge | export-adapter`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spirit_jax import __version__
from spirit_jax.checkpoint import local_directory
from spirit_jax.convert.errors import ConversionError, UsageError
from spirit_jax.convert.released_folder import MODEL_FOLDERS, SELECTIONS
from spirit_jax.core.buckets import is_bucket, list_objects
from spirit_jax.core.compilation_cache import OFF, use_compilation_cache
from spirit_jax.core.errors import exit_codes
from spirit_jax.core.paths import disk_path
from spirit_jax.core.working_copy import output_directory

if TYPE_CHECKING:
    from spirit_jax.convert.jobs import Job
    from spirit_jax.convert.verification.verify import Verified

# Functions import what they run, so that --help and a bad argument do not wait for JAX.

PROG = "python -m spirit_jax.convert"

_DESCRIPTION = """\
Convert checkpoints between the released PyTorch layout and spirit_jax checkpoint directories, bit for bit.

  import   released PyTorch files to a checkpoint directory
  export   a checkpoint directory, or a step of a training run, to released PyTorch files
  verify   compare every tensor of both sides and, if PyTorch is installed, what the networks compute
  merge    add a low-rank adapter to the weights of its base: an ordinary checkpoint directory
  export-adapter   write the adapter of a training step in Hugging Face's PEFT format

PyTorch is not needed to convert. `COMMAND --help` describes a command and gives examples.
Exit code 2: the arguments or the inputs cannot be used. 1: the conversion failed; the target is unchanged.
"""

_SOURCES = """\
A released source is a tree with `spiritlm_model/` and `speech_tokenizer/`, one of its folders, the folder of the part
that --only names, or the directory of a Hugging Face Llama, whose vocabulary is extended to --model. With --only
hubert, the folder may hold any fairseq HuBERT (*.pt) with k-means centroids (*_L11_km500.bin, km.bin, *kmeans*.npy).
"""

_HELP = {
    "import": f"""\
Import released PyTorch files into a spirit_jax checkpoint directory.

{_SOURCES}
examples:
  {PROG} import --source RELEASED --target ckpt/base --model base
  {PROG} import --source RELEASED --target ckpt/speech --only hubert,pitch,style,vocoder
  {PROG} import --source Llama-2-7b-hf --target ckpt/llama2 --model expressive --dry-run
  {PROG} import --source hubert_folder --target ckpt/speech --only hubert --layer 11
""",
    "export": f"""\
Export a spirit_jax checkpoint directory, or a step of a training run, to released PyTorch files.

Parts that were trained from scratch have no released form and are left behind.

examples:
  {PROG} export --source ckpt/expressive --target released_again
  {PROG} export --source runs/my_run/checkpoints/10000 --target released_mine --only llm
""",
    "verify": f"""\
Compare every tensor of a released source with a spirit_jax checkpoint directory. If PyTorch is installed, also run both
networks of every part on the same input. The exit code is 1 if anything differs.

{_SOURCES}
example:
  {PROG} verify --source RELEASED --target ckpt/expressive --model expressive
""",
    "merge": f"""\
Add a low-rank adapter to the weights of its base. The result is a checkpoint directory that needs no adapter.

example:
  {PROG} merge --source ckpt/expressive --adapter runs/voice/checkpoints/500 --target ckpt/voice
""",
    "export-adapter": f"""\
Write an adapter as adapter_config.json and adapter_model.safetensors, which Hugging Face's PEFT loads beside the base
that `export` writes. `generate --adapter` and `merge` read this format too.

example:
  {PROG} export-adapter --source ckpt/expressive --adapter runs/voice/checkpoints/500 --target voice_peft
""",
}


_OF_ADAPTERS = ("merge", "export-adapter")
"""The commands that take `--adapter`."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the names of options may have underscores or dashes.

    Raises:
        SystemExit: with code 2 and a message for a bad argument, with code 0 after `--help`.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(PROG, description=_DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"spirit_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in _HELP.items():
        command = commands.add_parser(name, description=description, formatter_class=raw, allow_abbrev=False)
        command.add_argument("--source", required=True, help="directory to read, also gs://BUCKET/NAME")
        target = "directory to compare with" if name == "verify" else "directory to write"
        command.add_argument("--target", required=True, help=f"{target}, also gs://BUCKET/NAME")
        if name in _OF_ADAPTERS:
            command.add_argument(
                "--adapter",
                required=True,
                help="a step of a run with a section lora, or a directory in PEFT's format; --source is its base",
            )
        else:
            command.add_argument(
                "--only",
                type=lambda text: text.split(","),
                help=f"convert these parts only; separated by commas, among {','.join(SELECTIONS)}",
            )
        if name in ("import", "verify"):
            command.add_argument(
                "--model",
                choices=sorted(MODEL_FOLDERS),
                help="which language model of a released tree, or the variant to extend a plain Llama to",
            )
            command.add_argument(
                "--layer",
                type=int,
                help="layer of HuBERT that k-means centroids quantize, if their file name has none, such as L11",
            )
        command.add_argument(
            "--compilation-cache", metavar=f"{OFF}|DIR", help="directory of compiled programs; none: keep no programs"
        )
        if name != "verify":
            command.add_argument("--dry-run", action="store_true", help="check and list everything, write nothing")
            command.add_argument(
                "--overwrite", action="store_true", help="replace the converted parts of an existing target"
            )
    return parser.parse_args([_with_dashes(argument) for argument in arguments])


def _with_dashes(argument: str) -> str:
    """`--dry_run` as `--dry-run`; values are unchanged."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if argument.startswith("--") else argument


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the converter with these arguments, or with those of the process.

    Raises:
        SystemExit: with code 2 if the arguments or inputs cannot be used, with code 1 if the conversion failed.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    # SIGTERM raises an exception, so that the staging directory is removed as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with exit_codes(PROG, interrupted=f"interrupted; {options.target} is as it was"):
        use_compilation_cache(options.compilation_cache)
        options.source = local_directory(options.source, "--source")
        if options.command in _OF_ADAPTERS:
            options.adapter = local_directory(options.adapter, "--adapter")
        if options.command == "verify":
            _verify(options)
        else:
            _convert(options)


def _convert(options: argparse.Namespace) -> None:
    """Run a command that writes: plan, print the plan, and run it."""
    import tqdm

    from spirit_jax.convert.adapters import plan_merge, plan_peft_export
    from spirit_jax.convert.jobs import run_jobs
    from spirit_jax.convert.plans import plan_export, plan_import

    target: str = options.target
    in_bucket = is_bucket(target)
    exists = bool(list_objects(target)) if in_bucket else os.path.exists(disk_path(target, "--target"))
    if exists and not (options.overwrite or options.dry_run):
        raise UsageError(f"--target {target} exists; choose another, or say --overwrite to replace its parts")
    if options.command == "import":
        jobs = plan_import(options.source, options.only, options.model, options.layer)
    elif options.command == "merge":
        jobs = plan_merge(options.source, options.adapter)
    elif options.command == "export-adapter":
        jobs = plan_peft_export(options.source, options.adapter)
    else:
        jobs = plan_export(options.source, options.only)
    _print_plan(jobs)
    if options.dry_run:
        print(f"dry run: nothing written to {target}")
        return
    nbytes = sum(job.nbytes for job in jobs)
    # what is in a bucket is brought here, so that the files of replaced parts are removed there
    with (
        output_directory(target, "--target") as directory,
        tqdm.tqdm(total=nbytes, unit="B", unit_scale=True, disable=None) as bar,
    ):
        run_jobs(jobs, directory, overwrite=options.overwrite or in_bucket, progress=bar.update)
    print(f"wrote {target}")


def _print_plan(jobs: "Sequence[Job]") -> None:
    rows = [(job.name, str(job.source), job.place, job.tensors, job.nbytes) for job in jobs]
    print(_aligned(("part", "from", "to", "tensors", "bytes"), rows))
    for note in (note for job in jobs for note in job.notes):
        print(f"note: {note}")


def _verify(options: argparse.Namespace) -> None:
    """Compare both sides and print a table.

    Raises:
        ConversionError: a tensor differs, or the outputs of a network differ by more than `TOLERANCE`.
    """
    import tqdm

    from spirit_jax.convert.verification.verify import TOLERANCE, verify

    source, target = options.source, local_directory(options.target, "--target")
    with tqdm.tqdm(unit="B", unit_scale=True, desc="compared", disable=None) as bar:
        results = verify(source, target, options.only, options.model, options.layer, bar.update)
    _print_results(results)
    wrong = [result.part for result in results if result.equal != "yes"]
    if wrong:
        raise ConversionError(f"{', '.join(wrong)}: tensors differ between {source} and {target}")
    wrong = [result.part for result in results if result.network is not None and not result.network <= TOLERANCE]
    if wrong:
        raise ConversionError(f"{', '.join(wrong)}: the networks of {source} and {target} give different outputs")


def _print_results(results: "Sequence[Verified]") -> None:
    from spirit_jax.convert.verification.verify import TOLERANCE

    networks = ["-" if result.network is None else f"{result.network:.1e}" for result in results]
    head = ("part", "tensors", "bytes", "equal", "sha256", "network", "tolerance")
    print(_aligned(head, [(*row[:5], network, TOLERANCE) for row, network in zip(results, networks, strict=True)]))
    if "-" in networks:
        print("note: -: install torch and transformers to compare the networks too")


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """A table with aligned columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
