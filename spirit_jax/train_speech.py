"""Train the parts of a speech tokenizer on recordings of your own.

    python -m spirit_jax.train_speech --config configs/speech/tiny.yaml [--section.key value ...]

The parts are trained one after the other, each with its checkpoints and its log in a folder of the run directory. The
same command resumes. Finished parts are in RUN/speech_tokenizer, and RUN is a checkpoint that encode and train read.
"""

import logging
from collections.abc import Sequence

from spirit_jax import config
from spirit_jax.core.errors import exit_codes
from spirit_jax.core.interrupts import end_at_once, leave_threads_behind
from spirit_jax.speech_training.config import TrainSpeechConfig

PROG = "python -m spirit_jax.train_speech"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit code 2 for a config that cannot be used, 1 for a run that failed, 130 after Ctrl-C."""
    settings = config.parse(TrainSpeechConfig, arguments, PROG, __doc__)
    # Orbax raises what it also logs with a traceback.
    logging.getLogger("absl").addFilter(lambda record: not record.exc_info)
    again = "interrupted; the same command starts the run again, or resumes it"
    with leave_threads_behind(), exit_codes(PROG, again), end_at_once(PROG, again):
        # imported here, so that --help and a bad argument need neither JAX nor a network
        from spirit_jax.parallel.processes import join_processes, leave_on_error
        from spirit_jax.speech_training import job
        from spirit_jax.speech_training.compile import compile_parts

        with leave_on_error(PROG):
            if settings.compile_topology is not None:
                for name, cost in compile_parts(settings, settings.compile_topology):
                    print(f"{name}: {cost}", flush=True)
                return
            join_processes(settings.faults.heartbeat_timeout)
            job.run(settings)


if __name__ == "__main__":
    main()
