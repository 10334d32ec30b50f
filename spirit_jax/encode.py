"""Encode speech or text into the unit records that training reads.

    python -m spirit_jax.encode --checkpoint CHECKPOINT --input INPUT --output DIR

INPUT is a manifest (.jsonl, .json, .csv or .tsv), an audio file, a folder or a quoted glob of them, a JSONL file or a
quoted glob of them with lines of text, a prepared TFDS directory, a published corpus in its layout (librispeech:DIR),
or the name of a bundled corpus. INPUT, CHECKPOINT and DIR may also be in a bucket (gs://BUCKET/NAME). The same command
resumes a job that was killed. Start it on any number of hosts that share DIR, and they divide the work; the work of a
host that is lost is done by the others. On one host all local devices share the work. With --runner the blocks of the
corpus are encoded by the workers of Apache Beam.
"""

import logging
import os
from collections.abc import Sequence

from spirit_jax import config
from spirit_jax.core.errors import exit_codes
from spirit_jax.corpora.encode_config import EncodeConfig

# `main` imports what it runs, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.encode"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("spirit_jax.corpora", "spirit_jax.speech"):  # whether anything is to do, and what is compiled
        logging.getLogger(name).setLevel(logging.INFO)
    settings = config.parse(EncodeConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; the same command resumes the job"):
        from spirit_jax.corpora import encode_job
        from spirit_jax.parallel.processes import place_in_job

        encode_job.run(settings, *place_in_job())


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
