"""Train models that differ in one thing, over several seeds, and compare them.

    python tools/make_ablation_data.py
    python -m spirit_jax.ablate --config configs/ablations/study.yaml
    python -m spirit_jax.ablate --config configs/ablations/study.yaml --seeds 1 --only interleaved --only separate

The study's config names the conditions, each with its training configs, and the tasks of `evaluate` that compare them.
The output directory gets `ablations.md`, tables of all conditions and of the differences with their intervals,
`ablations.json`, a plot, and each run with its results. The same command continues a study that was killed.
"""

from collections.abc import Sequence

from spirit_jax import config
from spirit_jax.ablations.config import AblateConfig
from spirit_jax.core.errors import exit_codes

PROG = "python -m spirit_jax.ablate"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. The exit code is 2 for a bad argument or bad data, 1 for a failed or interrupted job."""
    settings = config.parse(AblateConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; the same command continues the study"):
        # imported here, so that --help and a bad argument need neither JAX nor a network
        from spirit_jax.ablations.study import run_study
        from spirit_jax.parallel.processes import refuse_job

        refuse_job(PROG)
        print(run_study(settings))


if __name__ == "__main__":
    main()
