"""Train a Spirit LM.

    python -m spirit_jax.train --config configs/tiny.yaml [--section.key value ...]

The run lives in one directory: config, tokenizers, metrics, samples and checkpoints. The same command resumes it.
"""

import logging
from collections.abc import Sequence

from spirit_jax import config
from spirit_jax.core.errors import exit_codes
from spirit_jax.core.interrupts import end_at_once, leave_threads_behind
from spirit_jax.run.config import TrainConfig

PROG = "python -m spirit_jax.train"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit code 2 for a config that cannot be used, 1 for a run that failed, 130 after Ctrl-C."""
    settings = config.parse(TrainConfig, arguments, PROG, __doc__)
    # Orbax raises what it also logs with a traceback.
    logging.getLogger("absl").addFilter(lambda record: not record.exc_info)
    again = "interrupted; the same command starts the run again, or resumes it"
    with leave_threads_behind(), exit_codes(PROG, again), end_at_once(PROG, again):
        # imported here, so that --help and a bad argument need neither JAX nor a network
        from spirit_jax.parallel.processes import join_processes, leave_on_error
        from spirit_jax.run import job

        with leave_on_error(PROG):
            settings = job.with_sizes(settings, config.named_options(TrainConfig, arguments))
            if settings.compile_topology is not None:
                print(job.compile_run(settings))
                return
            join_processes(settings.faults.heartbeat_timeout)
            job.run(settings)


if __name__ == "__main__":
    main()
