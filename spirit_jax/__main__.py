"""The command line of spirit_jax: `spirit-jax COMMAND ...`, or `python -m spirit_jax COMMAND ...`.

`spirit-jax COMMAND` and `python -m spirit_jax.COMMAND` are the same program.
"""

import importlib
import sys
from collections.abc import Sequence

from spirit_jax import __version__
from spirit_jax.core.errors import BAD_ARGUMENT, exit_codes, fail

PROG = "spirit-jax"

COMMANDS = {
    "train": ("spirit_jax.train", "Train a Spirit LM, or resume a run."),
    "train_speech": ("spirit_jax.train_speech", "Train the parts of a speech tokenizer: HuBERT, quantizers."),
    "align": ("spirit_jax.align", "Find the times of words in recordings with transcripts."),
    "train_tokenizers": ("spirit_jax.train_tokenizers", "Train a speech and a text tokenizer on your own corpora."),
    "encode": ("spirit_jax.encode", "Encode speech and text into the unit records that training reads."),
    "pairs": ("spirit_jax.pairs", "Encode the speech of pairs and preferences for fine-tuning."),
    "rank": ("spirit_jax.rank", "Generate several answers to each prompt and keep the best and the worst."),
    "generate": ("spirit_jax.generate", "Continue prompts of text and speech."),
    "serve": ("spirit_jax.serve", "Serve a model: a page to talk to it, and APIs over HTTP and WebSocket."),
    "decode": ("spirit_jax.decode", "Turn speech units into audio files."),
    "evaluate": ("spirit_jax.evaluate", "Measure a model on the paper's tasks, and on a bundled benchmark."),
    "ablate": ("spirit_jax.ablate", "Train models that differ in one thing, over several seeds, and compare them."),
    "convert": ("spirit_jax.convert.command", "Convert checkpoints from and to the released PyTorch layout."),
}
"""Each command's module, whose `main(arguments)` runs it, and its line in the help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names with the other arguments.

    Exit code 2 for an argument that cannot be used, 1 for a failed job.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"spirit_jax {__version__}")
    elif name not in COMMANDS:
        print(usage(), file=sys.stderr)
        fail(PROG, f"{name!r} is not a command" if name else "name a command", BAD_ARGUMENT)
    else:
        with exit_codes(f"{PROG} {name}"):
            command = importlib.import_module(COMMANDS[name][0])
            command.main(rest)


def usage() -> str:
    """The help text: a line for each command."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [options]",
            "",
            "Train, convert and run Spirit LM, a language model that freely mixes text and speech.",
            "",
            *lines,
            "",
            f"`{PROG} COMMAND --help` explains every option of a command; `{PROG} --version` prints the version.",
        ]
    )


if __name__ == "__main__":
    main()
