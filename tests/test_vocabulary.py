"""Ids against the released layout (docs/paper.md), the reference's tokenizer (golden) and the string form."""

import doctest
import json

import numpy as np
import pytest

from spirit_jax import vocabulary as vocabulary_module
from spirit_jax.data.word_pieces import WordPieces
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import TOKEN_KINDS, Vocabulary, VocabularyError, added_tokens
from tests.support.goldens import golden, golden_json

TEXTS = ["the cat sat on the mat and the dog ran after it", "a man, a plan: 12 canals!", "Hello world, hello you"] * 40


@pytest.fixture(scope="module")
def small():
    return Vocabulary.load(golden("tokenizers/small_expressive_userdef"))


def _units(rng, frames=60):
    return SpeechUnits(
        rng.integers(0, 501, frames), rng.integers(0, 64, frames // 2), rng.integers(0, 100, -(-frames // 25))
    )


def test_examples_in_the_docstrings_hold():
    results = doctest.testmod(vocabulary_module)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("flavor", ["userdef", "added"])
@pytest.mark.parametrize("variant", ["base", "expressive"])
def test_encode_equals_the_reference(variant, flavor):
    vocabulary = Vocabulary.load(golden(f"tokenizers/small_{variant}_{flavor}"))
    assert vocabulary.variant == variant
    # both flavors give the ids of "userdef"; the reference cannot decode the other (docs/formats.md, "Tokenizer")
    rows = golden_json("tokenizer_tf446.json")["table"][f"small_{variant}_{flavor}|legacy=False"]["rows"]
    rows = [row for row in rows if "</s>" not in row["s"]]  # control tokens written as text stay text here
    assert len(rows) > 30
    for row in rows:
        assert vocabulary.encode(row["s"]) == row["ids"], row["s"]
        if flavor == "userdef":
            assert vocabulary.decode(row["ids"]) == row["decoded"]


@pytest.mark.parametrize(("variant", "padded"), [("base", 32512), ("expressive", 32768)])
def test_ids_are_the_released_ones(variant, padded):
    vocabulary = Vocabulary.load(golden(f"checkpoints/spiritlm_model/spirit-lm-{variant}-7b"))
    assert (vocabulary.text_id, vocabulary.speech_id, vocabulary.hubert_offset) == (32000, 32001, 32002)
    if variant == "expressive":
        assert (vocabulary.pitch_offset, vocabulary.style_offset, vocabulary.size) == (32503, 32567, 32667)
    assert vocabulary.padded_size == padded


def test_arithmetic_equals_the_string_form(small):
    rng = np.random.default_rng(1)
    for _ in range(20):
        units = _units(rng)
        string = f"[Text]the cat [Speech]{units.to_string()}[Text]sat"
        ids = [*small.prefix, small.text_id, *small.encode_text("the cat "), small.speech_id, *small.unit_ids(units)]
        ids += [small.text_id, *small.encode_text("sat")]
        assert small.encode(string) == ids
        assert small.decode(ids) == string


def test_base_leaves_pitch_and_style_out():
    vocabulary = Vocabulary.load(golden("tokenizers/small_base_userdef"))
    units = _units(np.random.default_rng(2))
    assert vocabulary.unit_ids(units).tolist() == vocabulary.encode(units.without_expression().to_string())[2:]


def test_units_of_inverts_unit_ids(small):
    units = _units(np.random.default_rng(3))
    assert small.units_of(small.unit_ids(units)) == SpeechUnits.from_string(units.to_string())
    with pytest.raises(VocabularyError, match="position 1 is not a speech unit"):
        small.units_of([small.hubert_offset, 5])


def test_every_id_has_its_kind(small):
    names = [TOKEN_KINDS[kind] for kind in small.token_kinds]
    tokens = dict(zip(range(small.text_size, small.size), added_tokens("expressive"), strict=True))
    for index, token in tokens.items():
        assert names[index] == {"[H": "hubert", "[P": "pitch", "[S": "style"}.get(
            token[:2] if token != "[Speech]" else "", "control"
        )
    assert set(names[small.size :]) == {"control"}
    assert names[small.bos_id] == names[small.eos_id] == "control"
    assert names.count("text") == small.text_size - 2


def test_trained_vocabulary_reads_back(tmp_path):
    vocabulary = Vocabulary.train(TEXTS, 320)
    assert vocabulary.text_size == 320
    assert vocabulary.padded_size == 1024
    again = Vocabulary.train(TEXTS, 320)
    assert again.fingerprint == vocabulary.fingerprint
    vocabulary.save(tmp_path / "tokenizer")
    loaded = Vocabulary.load(tmp_path / "tokenizer")
    assert loaded.fingerprint == vocabulary.fingerprint
    text = "the dog sat on 12 mats\n\u00e9"
    assert loaded.decode(loaded.encode_text(text)) == text
    assert loaded.encode_texts([text, ""]) == [loaded.encode_text(text), []]
    with pytest.raises(FileExistsError):
        vocabulary.save(tmp_path / "tokenizer")


def test_saved_tokenizer_gives_the_same_ids_in_hugging_face(tmp_path):
    """Transformers 5 leaves out the dummy space; all other ids are equal (docs/formats.md, "Tokenizer")."""
    transformers = pytest.importorskip("transformers")
    vocabulary = Vocabulary.train(TEXTS, 320)
    vocabulary.save(tmp_path / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    string = "[Text]the cat [Speech][St3][Pi2][Hu500][Text]sat"
    ids = vocabulary.encode(string)
    assert [index for index in tokenizer(string).input_ids if index not in vocabulary.prefix] == [
        index for index in ids if index not in vocabulary.prefix
    ]


def test_tokenizer_like_llama_3_is_extended(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary.load(tmp_path, "expressive")
    assert vocabulary.text_id == vocabulary.text_size == bpe.get_vocab_size()
    assert vocabulary.prefix == [bpe.token_to_id("<|begin_of_text|>")]
    units = _units(np.random.default_rng(4))
    string = f"[Text]the cat [Speech]{units.to_string()}[Text]sat"
    ids = vocabulary.encode(string)
    assert ids == [
        *vocabulary.prefix,
        vocabulary.text_id, *bpe.encode("the cat ").ids,
        vocabulary.speech_id, *vocabulary.unit_ids(units).tolist(),
        vocabulary.text_id, *bpe.encode("sat").ids,
    ]  # fmt: skip
    assert vocabulary.decode(ids) == string
    assert vocabulary.encode_text("the cat") == bpe.encode("the cat").ids
    for literal in ("the<|end_of_text|>cat", "[Hu3]", "<|begin_of_text|>[Text]"):
        ids = vocabulary.encode_text(literal)
        assert max(ids) < vocabulary.text_size
        assert not {vocabulary.bos_id, vocabulary.eos_id} & set(ids)
        assert vocabulary.decode(ids) == literal


def test_bad_tokenizers_are_refused(tmp_path):
    with pytest.raises(VocabularyError, match="neither tokenizer.model nor tokenizer.json"):
        Vocabulary.load(tmp_path)
    with pytest.raises(VocabularyError, match="is Spirit LM base's, asked for was expressive"):
        Vocabulary.load(golden("tokenizers/small_base_userdef"), "expressive")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((golden("tokenizers/small_base_added") / name).read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(int(index) + (int(index) > 639)): entry for index, entry in config["added_tokens_decoder"].items()
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(VocabularyError, match=r"\[Text\] id 641, expected 640"):
        Vocabulary.load(tmp_path)
    with pytest.raises(VocabularyError, match="cannot train 5000 text pieces"):
        Vocabulary.train(TEXTS, 5000)


@pytest.mark.parametrize("text", ["the [Text] cat", "[Hu3][Pi4]", "sat on [Speech][St99]mats[", "[[Hu500]]"])
def test_special_tokens_in_text_stay_text(text):
    vocabulary = Vocabulary.train(TEXTS, 320)
    ids = vocabulary.encode_text(text)
    assert max(ids) < vocabulary.text_size
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode_texts([text, "the cat"]) == [ids, vocabulary.encode_text("the cat")]
    assert WordPieces(vocabulary)(text) == ids


@pytest.mark.parametrize("separator", [" ", ""])
def test_long_lines_are_trained_on_in_parts(separator):
    """Nothing of a line of 9 kB is dropped, although SentencePiece drops lines over 4192 bytes."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh\u00e9\u5b57"), rng.integers(2, 9))) for _ in range(300)]
    drawn = list(rng.choice(words, 2000))
    page = separator.join(drawn)
    trained = Vocabulary.train([page] * 3, 300)
    assert len(trained.encode_text(page)) < 0.9 * len(page.encode())
    assert len(trained.encode_text("\u00e9\u5b57")) == 2  # pieces of their own, and no bytes
    if separator:  # where a line is cut at spaces, the words are the same wherever it is cut
        lines = [separator.join(drawn[start : start + 100]) for start in range(0, len(drawn), 100)]
        assert trained.fingerprint == Vocabulary.train(lines * 3, 300).fingerprint


def test_lone_surrogates_in_training_text_are_left_out():
    texts = [*TEXTS, "the \ud800 cat", "\udfff"]
    assert Vocabulary.train(texts, 320).text_size == 320
