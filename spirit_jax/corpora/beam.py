"""Encoding on Apache Beam: the blocks of a split are the elements of a pipeline, and its workers store them.

A worker opens the job as the command does, encodes its blocks with `BlockEncoder` and writes them into the job's
`BlockStore`. The pipeline passes numbers of blocks only. So the records do not depend on the runner, and a job whose
pipeline failed resumes at its first missing block.
"""

import contextlib
import io
import logging
import shlex
from collections.abc import Iterator

from spirit_jax.core.errors import JobError, SpiritError
from spirit_jax.corpora.blocks import BlockEncoder
from spirit_jax.corpora.encode_config import EncodeConfig
from spirit_jax.corpora.encode_job import open_job
from spirit_jax.corpora.encoding import block_store

try:
    logging.disable(logging.WARNING)  # it warns of each library that is missing for another runner
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.shared import Shared
except ImportError as error:
    raise SpiritError("--runner needs Apache Beam: pip install 'spirit_jax[beam]'") from error
finally:
    logging.disable(logging.NOTSET)

_LOG = logging.getLogger(__name__)


class BeamError(SpiritError):
    """A runner, or options of it, that cannot be used."""


class PipelineError(JobError):
    """A pipeline that failed; finished blocks are kept."""


class BeamWorkers:
    """Encodes blocks of a split by the workers of a Beam runner.

    Args:
        settings: the job; its workers open it by these settings.
        part: number of the split in `OpenedJob.parts`.

    Raises:
        BeamError: the runner or its options cannot be used.
    """

    def __init__(self, settings: EncodeConfig, part: int):
        self._settings, self._part = settings, part
        self._options = _pipeline_options(settings.runner_options)
        try:
            self._runner = beam.runners.create_runner(settings.runner)
        except (ValueError, ImportError) as error:
            raise BeamError(f"--runner {settings.runner}: {' '.join(str(error).split())[:300]}") from error

    def __call__(self, blocks: list[int]) -> None:
        """Encode and store these blocks.

        Raises:
            PipelineError: the pipeline failed.
        """
        _LOG.info("%s: encodes %d blocks", self._settings.runner, len(blocks))
        try:
            with beam.Pipeline(runner=self._runner, options=self._options) as pipeline:
                numbers = pipeline | beam.Create(blocks, reshuffle=False) | beam.Reshuffle()
                _ = numbers | beam.ParDo(_StoreBlocks(self._settings, self._part))
        except Exception as error:  # runners raise what they like, also what workers raised
            reason = " ".join(str(error).split())[-500:]
            raise PipelineError(
                f"{self._settings.runner}: the pipeline failed; the same command resumes the job: {reason}"
            ) from error


def _pipeline_options(text: str) -> PipelineOptions:
    """Options in the form NAME=VALUE NAME=VALUE."""
    try:
        words = [f"--{word.lstrip('-')}" for word in shlex.split(text)]
        options = PipelineOptions(["--default_sdk_harness_log_level=WARNING", *words])
        messages = io.StringIO()
        with contextlib.redirect_stderr(messages):  # argparse prints and exits
            unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
    except ValueError as error:  # quotes
        raise BeamError(f"--runner-options {text}: {error}") from error
    except SystemExit as error:
        raise BeamError(f"--runner-options {text}: {messages.getvalue().strip().splitlines()[-1]}") from error
    if unknown:
        raise BeamError(f"--runner-options {text}: Apache Beam has no option {', '.join(sorted(unknown))}")
    return options


class _StoreBlocks(beam.DoFn):
    """Encodes blocks and stores them. All threads of a worker share the tokenizer."""

    def __init__(self, settings: EncodeConfig, part: int):
        super().__init__()
        self._settings, self._part = settings, part
        self._job = Shared()

    def setup(self) -> None:
        """Open the job."""
        opened = self._job.acquire(lambda: open_job(self._settings))
        corpus = opened.parts[self._part]
        self._resources = contextlib.ExitStack()
        self._encoder = self._resources.enter_context(BlockEncoder(corpus, opened.tokenizer))
        self._store = block_store(corpus, opened.tokenizer, self._settings.output, self._encoder.size)

    def process(self, block: int) -> Iterator[int]:
        """Store a block, unless it is stored already: a runner may run an element twice."""
        if not self._store.has(block):
            self._store.write(block, self._encoder.encode(block))
        yield block

    def teardown(self) -> None:
        """Close the job."""
        self._resources.close()
