"""Thousands of random inputs: each gives the right value or an error of the package, never another exception."""

import itertools
import json
import math
import random
from typing import Any

import numpy as np
import pytest

from spirit_jax import Segment
from spirit_jax.core.errors import SpiritError
from spirit_jax.inference.prompt_files import InputError, read_prompts
from spirit_jax.inference.prompts import PromptEncoder
from spirit_jax.inference.sampling_params import SamplingError, SamplingParams
from spirit_jax.units import SIZES, SpeechUnits, UnitError
from tests.support import checkpoints

PIECES = (
    "[Hu3]", "[Hu500]", "[Hu501]", "[Pi7]", "[Pi64]", "[St99]", "[St100]", "[Hu", "]", "[", "[Hu" + "9" * 4400 + "]",
    "[Hu-1]", "[Hu 3]", "[Text]", "[Speech]", "text:", "speech:", "units:", " ", "\t", "\0", "\ud800", "é", "\u2028",
    "gs://b/", "~/", "../", "nothing.wav", "<s>", "</s>", "[ASR]", "[hu3]", "[Hu03]",
)  # fmt: skip


def random_string(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(6)))


def random_json(rng: random.Random, depth: int = 0):
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind < 3:
        return random_string(rng)
    if kind == 6:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 7:
        return {rng.choice(["id", "input", "prompt", "x"]): random_json(rng, depth + 1) for _ in range(3)}
    return rng.choice([None, True, 0, -1, 10**30, 1.5, float("inf"), float("nan")])


def test_random_unit_strings_give_their_units_or_an_error():
    rng, good, longest = random.Random(0), 0, 0
    for _ in range(3000):
        string = random_string(rng)
        try:
            units = SpeechUnits.from_string(string)
        except UnitError as error:
            longest = max(longest, len(str(error)))
            continue
        good += 1
        values = [value for stream in units.streams if stream is not None for value in stream.tolist()]
        assert all(f"{value}]" in string for value in values if value != 3)
    assert good > 300
    assert longest < 200


def test_random_prompts_files_give_prompts_or_an_error(tmp_path):
    rng, path, good, longest = random.Random(1), tmp_path / "p.jsonl", 0, 0
    vocabulary = checkpoints.load("small_expressive").vocabulary
    encoder = PromptEncoder(vocabulary, 4096, None)
    for number in range(1000):
        key, value = ("input", [random_string(rng)]) if number % 3 else ("prompt", random_string(rng))
        entry = {"id": rng.choice([number, str(number), random_string(rng), random_json(rng)]), key: value}
        line = json.dumps(entry if number % 4 else random_json(rng))
        if number % 7 == 0:
            at = rng.randrange(len(line) + 1)
            line = line[:at] + rng.choice(["", "{", '"', "\\", "[" * 200]) + line[at + rng.randrange(3) :]
        path.write_text(line + "\n")
        try:
            ((name, prompt),) = read_prompts(path)
            assert not isinstance(prompt, SpiritError)
            encoded = encoder.encode(prompt)
        except SpiritError as error:
            longest = max(longest, len(str(error)))
            continue
        good += 1
        assert "/" not in name
        assert 0 <= encoded.ids.min() <= encoded.ids.max() < vocabulary.size
    assert good > 60
    assert longest < 700


def test_a_file_of_very_many_prompts_is_read_in_linear_time(tmp_path):
    """Ids were once compared with each other, which took minutes for 40 000 lines."""
    path = tmp_path / "p.jsonl"
    numbers = [*range(20_000), 7]
    path.write_text("".join(f'{{"id": "p{number}", "input": ["text:{number}"]}}\n' for number in numbers))
    with pytest.raises(InputError, match="id 'p7' comes twice"):
        read_prompts(path)


VALUES: tuple[Any, ...] = (
    0, 1, -1, 0.5, 2, 50, 1e-300, 1e300, 10**400, math.inf, -math.inf, math.nan, True, None, "1", "", [], ["a"], [""],
    [3], {"a": 1}, np.float32(0.5), np.int64(3), 3 + 4j, b"a", 2**31, -(2**70),
)  # fmt: skip
RIGHT = {
    "temperature": lambda v: 0 <= v <= 1e30,
    "top_k": lambda v: v >= 0 and v < 2**31,
    "top_p": lambda v: 0 < v <= 1,
    "min_p": lambda v: 0 <= v <= 1,
    "repetition_penalty": lambda v: 1e-30 <= v <= 1e30,
    "max_new_tokens": lambda v: 1 <= v < 2**31,
    "seed": lambda v: True,
}
WHOLE = ("top_k", "max_new_tokens", "seed")


@pytest.mark.parametrize("field", RIGHT)
def test_every_value_of_a_sampling_option_is_right_or_refused(field):
    for value in VALUES:
        kind = (int, np.integer) if field in WHOLE else (int, float, np.integer, np.floating)
        right = isinstance(value, kind) and not isinstance(value, bool) and bool(RIGHT[field](value))
        options: dict[str, Any] = {field: value}
        if right:
            assert getattr(SamplingParams(**options), field) == value
        else:
            with pytest.raises(SamplingError, match=rf"^{field} must be .{{,120}}$"):
                SamplingParams(**options)


def test_stop_strings_are_strings():
    for value in VALUES:
        try:
            stop = SamplingParams(stop=value).stop
        except SamplingError:
            assert not isinstance(value, str | list) or value in ("", [""], [3])
        else:
            assert stop in (("1",), ("a",), ())


def test_units_outside_their_streams_are_refused_however_they_are_given():
    for stream, value in itertools.product(range(3), (-1, 10**6, 2**31, 2**63 - 1)):
        units = [np.array([1]), np.array([1]), np.array([1])]
        units[stream] = np.array([value])
        with pytest.raises(UnitError, match=rf"must lie in 0..{SIZES[stream] - 1}"):
            Segment.speech(SpeechUnits(*units))
