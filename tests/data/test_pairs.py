"""Fine-tuning pairs: ids and loss masks against a brute force, and the refusal of pairs that cannot be learned."""

import json

import numpy as np
import pytest

from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.loader import Loader
from spirit_jax.data.packing import empty_batch, fill_row, only_read
from spirit_jax.data.pairs import TEMPLATES, TOKENIZER_KEY, Pair, PairRecords, PairSequencer, Turn, render
from spirit_jax.data.preference_config import PreferenceData
from spirit_jax.data.preferences import PreferenceBatches, Preferences, held_out_preferences
from spirit_jax.data.sequences import Sequencer
from spirit_jax.data.unit_record import RecordError, UnitRecord
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary

WORDS = "the old engine stopped near a tunnel and one small child asked why it was so dark in there today"


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([WORDS] * 20, 300, "expressive")


def _write(directory, lines, split="train"):
    directory.mkdir(exist_ok=True)
    (directory / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


PAIRS = [
    Turn(("text:the old engine",), ("text: stopped near",)),
    Turn(("text:the old engine ",), ("units:[Hu3][Hu7]",)),
    Turn(("units:[St1][Pi2][Hu3]", "text: why"), ("units:[Hu4]", "text:dark")),
    Turn((), ("text:the child",)),
    Turn(("units:[Hu5]",), ("units:[Hu6][Hu5]",)),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("turns", [*((turn,) for turn in PAIRS), tuple(PAIRS[:3])], ids=lambda turns: str(len(turns)))
def test_ids_are_those_of_the_prompt_and_the_mask_covers_the_outputs(vocabulary, template, turns):
    """The brute force encodes the string up to each boundary, as `generate` would, and compares ids."""
    ids = PairSequencer(vocabulary, template, 1000).encode(Pair("a", turns))
    plain = np.maximum(ids, ~ids)
    string, expected = "", []
    for run in render(turns, TEMPLATES[template]):
        string += "[Text]" if run.kind == "text" else "[Speech]"
        for piece, is_learned in run.pieces:
            string += piece
            pairs = enumerate(zip(vocabulary.encode(string), plain.tolist(), strict=False))
            end = next((index for index, (a, b) in pairs if a != b), len(vocabulary.encode(string)))
            expected += [is_learned] * (end - len(expected))
    assert plain.tolist() == [*vocabulary.encode(string), vocabulary.eos_id]
    start = len(vocabulary.prefix)
    assert (ids >= 0).tolist()[start:] == [*expected, True][start:]
    assert not (ids >= 0)[:start].any()
    outputs = [part.partition(":")[2] for turn in turns for part in turn.output]
    learned = [piece for run in render(turns, TEMPLATES[template]) for piece, is_learned in run.pieces if is_learned]
    assert learned == outputs


def test_a_modality_token_stands_where_the_modality_changes():
    runs = render([PAIRS[2], PAIRS[0]], TEMPLATES["answer"])
    assert [run.kind for run in runs] == ["units", "text", "units", "text"]
    assert runs[1].pieces == [(" why", False), (" Answer:", False)]
    assert runs[3].pieces == [("dark", True), ("the old engine", False), (" Answer:", False), (" stopped near", True)]


def test_tokens_that_are_spelled_out_in_a_text_stay_text(vocabulary):
    ids = PairSequencer(vocabulary, "plain", 99).encode(Pair("a", (Turn(("text:a [Hu3]",), ("text: </s> b",)),)))
    ids = np.maximum(ids, ~ids).tolist()
    assert ids.count(vocabulary.eos_id) == 1
    assert vocabulary.hubert_offset + 3 not in ids


def test_rows_of_marked_documents_equal_a_loop():
    rng = np.random.default_rng(0)
    documents = [np.concatenate([[1], rng.integers(0, 99, 6)]).astype(np.int32) for _ in range(3)]
    marked = [document.copy() for document in documents]
    masks = [rng.random(7) < 0.5 for _ in documents]
    for document, mask in zip(marked, masks, strict=True):
        document[mask] = only_read(document[mask])
    batch, plain = empty_batch(1, 32), empty_batch(1, 32)
    fill_row(batch, 0, marked, 1)
    fill_row(plain, 0, documents, 1)
    for name in ("inputs", "targets", "segment_ids", "positions"):
        np.testing.assert_array_equal(batch[name], plain[name])
    expected = np.concatenate([~mask[1:] for mask in masks])
    np.testing.assert_array_equal(batch["loss_mask"][0, :18], expected)
    assert not batch["loss_mask"][0, 18:].any()
    np.testing.assert_array_equal(only_read(only_read(documents[0])), only_read(documents[0]))


def test_recipes_learn_their_output_alone(vocabulary):
    units = SpeechUnits(np.arange(6), None, None)
    record = UnitRecord("a", "the child asked why", units=units)
    for recipe in ("asr", "tts"):
        everything = Sequencer(vocabulary, recipe, 500)(record, None)[0]
        ids = Sequencer(vocabulary, recipe, 500, learn_output=True)(record, None)[0]
        np.testing.assert_array_equal(np.maximum(ids, ~ids), everything)
        learned = vocabulary.decode(ids[ids >= 0].tolist()[len(vocabulary.prefix) :])
        speech = "".join(f"[Hu{index}]" for index in range(6))
        assert learned.removesuffix("</s>") == (speech if recipe == "tts" else "the child asked why")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"input": ["text:a"], "output": []}, '"output" is empty: there is nothing to learn'),
        ({"input": ["text:a"], "output": ["text:"]}, '"output" is empty'),
        ({"id": "x7", "input": ["text:a"], "output": ["speech:b.wav"]}, r"id 'x7'\): 'speech:b.wav' is audio: encode"),
        ({"input": ["text:a"], "output": ["units:[Hu1"]}, r"units:\[Hu1'.* expected"),
        ({"input": ["text:a"], "output": ["units:[Hu501]"]}, r"no \[Hu501\]"),
        ({"input": "text:a", "output": ["text:b"]}, '"input" must be a list'),
        ({"prompt": "a"}, 'either "input" and "output", or "turns"'),
        ({"turns": []}, '"turns" must be a list'),
        ([1], "an object expected, found a list"),
    ],
)
def test_a_pair_that_cannot_be_learned_is_refused_by_name(vocabulary, tmp_path, line, message):
    records = PairRecords(_write(tmp_path / "d", [{"input": ["text:a"], "output": ["text:b"]}, line]), "train")
    with pytest.raises(RecordError, match=f"train.jsonl, pair 2.*{message}"):
        PairSequencer(vocabulary, "plain", 99)(records[1])


def test_the_splits_that_are_there_are_named(tmp_path):
    with pytest.raises(RecordError, match="no split 'test' .* it has train"):
        PairRecords(_write(tmp_path / "d", [{}]), "test")


def test_the_first_line_may_name_the_speech_tokenizer(tmp_path):
    pair = {"input": ["text:a"], "output": ["text:b"]}
    records = PairRecords(_write(tmp_path / "d", [{TOKENIZER_KEY: "abc"}, pair]), "train")
    assert (records.units, len(records), records[0].turns[0].output) == ("abc", 1, ("text:b",))


def test_the_loader_packs_pairs_and_counts_those_that_are_cut(vocabulary, tmp_path):
    pairs = [{"input": list(turn.input), "output": list(turn.output)} for turn in PAIRS]
    long = {"input": ["text:why"], "output": [f"units:{'[Hu1][Hu2]' * 60}"]}
    source = SourceConfig(str(_write(tmp_path / "d", [*pairs, long])), recipe="pairs", template="answer")
    config = DataConfig({"pairs": source}, on_bad_record="skip")
    with Loader(config, vocabulary, sequence_length=64, global_batch_size=2, seed=0) as loader:
        batches = [next(loader) for _ in range(4)]
        assert loader.skipped["pairs"] > 0
        state = loader.state()
        after = next(loader)
    with Loader(config, vocabulary, sequence_length=64, global_batch_size=2, seed=0, state=state) as again:
        for name, array in next(again).items():
            np.testing.assert_array_equal(array, after[name])
    assert all(batch["targets"].min() >= 0 for batch in batches)
    mask, segments = batches[0]["loss_mask"], batches[0]["segment_ids"]
    assert 0 < mask.sum() < (segments > 0).sum()


PREFERENCES = [
    {"input": ["text:the old"], "chosen": [f"units:[Hu{number}]"], "rejected": ["units:[Hu9][Hu8]"]}
    for number in range(5)
]


def test_batches_of_preferences_hold_both_answers_and_continue_from_a_state(vocabulary, tmp_path):
    config = PreferenceData(str(_write(tmp_path / "d", PREFERENCES)))
    preferences = Preferences(config, "train", vocabulary, 32)
    whole = PreferenceBatches(preferences, 4, seed=1)
    first, second = next(whole), next(whole)
    assert first["inputs"].shape == (4, 2, 32)
    assert (first["loss_mask"].sum(-1) == [3, 4]).all()  # [Speech], the units and the end
    halves = [PreferenceBatches(preferences, 4, 1, host, 2) for host in range(2)]
    np.testing.assert_array_equal(np.concatenate([next(half)["inputs"] for half in halves]), first["inputs"])
    resumed = PreferenceBatches(preferences, 4, 1, state=halves[0].state())
    np.testing.assert_array_equal(next(resumed)["targets"], second["targets"])
    held_out = list(held_out_preferences(preferences, 4))
    assert [batch["loss_mask"].any(axis=(1, 2)).sum() for batch in held_out] == [4, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": []}, '"chosen" is empty'),
        ({"rejected": ["text:"]}, '"rejected" is empty'),
        ({"rejected": ["units:[Hu0]"]}, '"chosen" and "rejected" are equal'),
        ({"chosen": ["units:" + "[Hu1][Hu2]" * 40]}, "the answer would be cut"),
    ],
)
def test_a_preference_that_cannot_be_used_is_refused_or_counted(vocabulary, tmp_path, change, message):
    path = str(_write(tmp_path / "d", [*PREFERENCES[1:], PREFERENCES[0] | change]))
    with pytest.raises(RecordError, match=f"train.jsonl, pair 5.*{message}"):
        Preferences(PreferenceData(path), "train", vocabulary, 32)
    counted = Preferences(PreferenceData(path, on_bad_record="skip"), "train", vocabulary, 32)
    assert (len(counted), counted.skipped) == (4, 1)
