"""Unit strings against what the reference gives (golden), and the cut against the definition written out."""

import numpy as np
import pytest

from spirit_jax.units import HUBERT, PITCH, STYLE, SpeechUnits, UnitError
from tests.support.goldens import golden_json


def _ints(string):
    return None if string is None else np.array(string.split(), np.int32)


def _golden_strings():
    for row in golden_json("units_to_string.json"):
        kwargs = row["kwargs"]
        if not set(kwargs) <= {"has_pitch", "has_style"} or "ok" not in row["result"]:
            continue  # our string form has no other rates and no other deduplication
        yield row["units"], kwargs, row["result"]["ok"]


def test_to_string_equals_the_reference():
    cases = list(_golden_strings())
    assert len(cases) > 20
    for units, kwargs, expected in cases:
        ours = SpeechUnits(
            _ints(units["hubert"]),
            _ints(units["pitch"]) if kwargs.get("has_pitch") else None,
            _ints(units["style"]) if kwargs.get("has_style") else None,
        )
        assert ours.to_string() == expected


def test_from_string_equals_the_reference_on_well_formed_strings():
    checked = 0
    for row in golden_json("string_to_units.json"):
        expected = row["result"].get("ok")
        if expected is None or "keys" in row or row["duplicate_hubert_for_multiple_pitch"]:
            continue
        if "]" in expected["hubert"]:
            continue  # text between tokens corrupts the reference's values

        try:
            units = SpeechUnits.from_string(row["s"])
        except UnitError:
            continue
        assert units.hubert.tolist() == _ints(expected["hubert"]).tolist()
        for name in ("pitch", "style"):
            found, wanted = getattr(units, name), expected.get(name)
            if wanted is None or "RANDOM" in wanted or (name == "style" and "[St" not in row["s"]):
                assert (
                    found is None
                )  # the reference invents a style at random where none was given; the vocoder decides, not the string
            else:
                assert found.tolist() == _ints(wanted).tolist()
        checked += 1
    assert checked > 15


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("[Hu1][Hu2", r"'\[Hu2' at position 5"),
        ("[Hu1]hello[Hu2]", "'hello' at position 5"),
        ("[Hu501]", "go up to 500"),
        ("[Hu1] [Pi64]", "position 6: Pi units go up to 63"),
        ("[Hu\u0661]", "at position 0"),  # an Arabic digit, which the reference takes for a unit
        ("[Text]hello", "position 0"),
    ],
)
def test_malformed_strings_name_the_position(string, message):
    with pytest.raises(UnitError, match=message):
        SpeechUnits.from_string(string)


def test_string_round_trip_up_to_durations():
    rng = np.random.default_rng(0)
    for frames in (1, 2, 25, 26, 77):
        units = SpeechUnits(
            rng.integers(0, 501, frames), rng.integers(0, 64, -(-frames // 2)), rng.integers(0, 100, -(-frames // 25))
        )
        kinds, values = units.merged()
        again = SpeechUnits.from_string("[Speech]" + units.to_string())
        np.testing.assert_array_equal(again.hubert, values[kinds == HUBERT])
        state, expected = {PITCH: None, STYLE: None}, []
        for kind, value in zip(kinds, values, strict=True):  # what is in force at each HuBERT token, written out
            if kind == HUBERT:
                expected.append((state[PITCH], state[STYLE]))
            else:
                state[kind] = value
        assert expected == list(zip(again.pitch.tolist(), again.style.tolist(), strict=True))
        assert again.is_aligned


def test_cut_takes_what_is_in_force():
    units = SpeechUnits(np.arange(100), np.arange(50), np.arange(4))
    for first, last in [(0, 100), (3, 4), (49, 75), (24, 26), (7, 7)]:
        cut = units.cut(first, last)
        assert cut.hubert.tolist() == list(range(first, last))
        assert cut.pitch.tolist() == [frame // 2 for frame in range(first, last, 2)]
        assert cut.style.tolist() == [frame // 25 for frame in range(first, last, 25)]
    with pytest.raises(UnitError, match="0..101 are not within the 100 frames"):
        units.cut(0, 101)


def test_units_out_of_range_are_refused():
    with pytest.raises(UnitError, match=r"Pi units must lie in 0..63, found 0..64"):
        SpeechUnits(np.array([1]), np.array([0, 64]))
    with pytest.raises(UnitError, match="1-D array of integers"):
        SpeechUnits(np.zeros((2, 2), int))
