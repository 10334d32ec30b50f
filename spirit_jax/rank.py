"""Make preferences: generate several answers to each prompt and keep the best and the worst one.

    python -m spirit_jax.rank --checkpoint BASE --prompts prompts.jsonl --by wer --output preferences/train.jsonl
    python -m spirit_jax.rank --checkpoint BASE --adapter ADAPTER --prompts prompts.jsonl --by likelihood \\
        --output preferences/train.jsonl

A line of the prompts is {"input": ["text:Good morning.[TTS]"], "reference": "Good morning."}, with segments as in
`generate`. wer compares the words of an answer, heard by a recognizer if it is speech, with the reference. likelihood
needs no reference: it is the mean log-probability of the words' tokens as text under the model. tone needs a prompt
with speech and an expressive model: it is the share of style units that an answer has in common with that speech.
Answers that do not end within `max_new_tokens`, and prompts whose answers are equally good, are left out and counted.
The section `preferences` of a training config reads the output.
"""

from collections.abc import Sequence

from spirit_jax import config
from spirit_jax.core.errors import exit_codes
from spirit_jax.evaluation.ranking_config import RankConfig

PROG = "python -m spirit_jax.rank"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    settings = config.parse(RankConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; no output was written"):
        from spirit_jax.evaluation.ranking import rank  # starts JAX

        print(rank(settings))


if __name__ == "__main__":
    main()
