"""Compiling before the first request comes."""

import logging

import numpy as np

from spirit_jax.core.arithmetic import next_power_of_two
from spirit_jax.core.errors import SpiritError
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import PREFILL_CHUNK, Capacity, Request
from spirit_jax.inference.shapes import bucket
from spirit_jax.inference.spiritlm import SpiritLM


def warm_up(lm: SpiritLM, capacity: Capacity, *, every_batch: bool) -> None:
    """Run requests of every padded length through a scheduler of this capacity, and speak some units.

    Args:
        every_batch: also compile the prefill of 2, 4, ... prompts at once.
    """
    scheduler = lm.engine.scheduler(capacity)
    most = next_power_of_two(capacity.slots) if every_batch else 1
    batches = [2**power for power in range(most.bit_length()) if 2**power <= most]
    lengths = sorted({min(bucket(n), PREFILL_CHUNK) for n in (1, 65, 129, 257) if n < capacity.length - 1})
    if capacity.length > PREFILL_CHUNK + 2:
        lengths.append(PREFILL_CHUNK + 1)  # the second chunk of a prompt, with a first one before it
    for length in lengths:
        tokens = min(length, capacity.length - 2)
        prompt = EncodedPrompt(np.full(tokens, lm.vocabulary.text_id, np.int32))
        for batch in batches:
            for _ in range(min(batch, capacity.slots)):
                scheduler.submit(Request(prompt, SamplingParams(max_new_tokens=2)))
            while scheduler.busy:
                scheduler.step()
    try:
        units = "[Hu1][Hu2]" if lm.vocabulary.variant == "base" else "[St1][Pi1][Hu1][Hu2]"
        lm.voice().speak(units)
    except SpiritError as error:
        logging.warning("the vocoder could not be tried: %s", error)
