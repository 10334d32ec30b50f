"""Text that spells a special token stays text, in prompts and in answers."""

import numpy as np
import pytest

from spirit_jax import Segment, SpeechUnits
from spirit_jax.inference import answers, literals
from spirit_jax.inference.prompts import EncodedPrompt, PromptEncoder, PromptError
from spirit_jax.inference.voice import Voice
from spirit_jax.vocabulary import TOKEN_KINDS, Vocabulary
from tests.support import checkpoints

TEXTS = (
    "a [Hu3] b",
    "[Text]",
    "say [Speech][Hu1][Hu2] now",
    "[Pi3]",
    "[St99] [Hu999999999999]",
    "[Text][Hu3",
    "[[Hu3]]",
)


@pytest.fixture(scope="module", params=["small_base", "small_expressive"])
def vocabulary(request) -> Vocabulary:
    return checkpoints.load(request.param).vocabulary


def encoder(vocabulary: Vocabulary) -> PromptEncoder:
    return PromptEncoder(vocabulary, 4096, None)


def kinds(vocabulary: Vocabulary, ids) -> list[str]:
    return [TOKEN_KINDS[kind] for kind in vocabulary.token_kinds[ids]]


@pytest.mark.parametrize("text", TEXTS)
def test_a_literal_in_text_has_the_ids_of_text(vocabulary, text):
    prompt = encoder(vocabulary).encode([Segment.text(text)], "text")
    start = len(vocabulary.prefix) + 1
    assert prompt.ids[:start].tolist() == [*vocabulary.prefix, vocabulary.text_id]
    assert prompt.ids[start:].tolist() == vocabulary.encode_text(text)
    assert set(kinds(vocabulary, prompt.ids[start:])) == {"text"}
    assert prompt.string == "[Text]" + text
    assert vocabulary.decode(prompt.ids) == "[Text]" + text


def test_speech_beside_a_literal_is_speech(vocabulary):
    segments = [Segment.text("say [Hu5]"), Segment.speech("[Hu5][Hu6]"), Segment.text(" or [Text]")]
    prompt = encoder(vocabulary).encode(segments, "speech")
    assert kinds(vocabulary, prompt.ids).count("hubert") == 2
    assert kinds(vocabulary, prompt.ids)[-1] == "control"
    assert prompt.string == "[Text]say [Hu5][Speech][Hu5][Hu6][Text] or [Text][Speech]"


def test_a_token_string_and_text_without_literals_are_encoded_as_before(vocabulary):
    string = "[Text]one [Speech][Hu5][Hu6][Text]two"
    assert encoder(vocabulary).encode(string).ids.tolist() == vocabulary.encode(string)
    segments = [Segment.text("one "), Segment.speech("[Hu5][Hu6]"), Segment.text("two")]
    assert encoder(vocabulary).encode(segments).ids.tolist() == vocabulary.encode(string)


def test_few_shot_examples_keep_their_literals(vocabulary):
    examples = [[Segment.text("[Hu1] one ")], "[Text]raw "]
    prompt = encoder(vocabulary).encode([Segment.text("[Hu2] two")], "text", few_shot=examples)
    assert prompt.string == "[Text][Hu1] one [Text]raw [Text][Hu2] two"
    assert "hubert" not in kinds(vocabulary, prompt.ids)


def test_decoding_with_marks_differs_from_decoding_in_the_marks_alone(vocabulary):
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, vocabulary.size, rng.integers(1, 40)).tolist()
        ids += vocabulary.encode_text("x [Hu3] [Speech]") if rng.random() < 0.5 else []
        marked = literals.decode(vocabulary, ids)
        assert literals.unmark(marked) == vocabulary.decode(ids)


def test_generated_text_that_spells_units_is_not_spoken(vocabulary):
    """It would be spoken by the rules for strings, and text that begins like a token would be cut out."""
    prompt = encoder(vocabulary).encode([Segment.text("a [Hu3]")])
    new = [*vocabulary.encode_text(" the [Hu7] [Study]"), vocabulary.speech_id, *[vocabulary.hubert_offset + 9] * 30]
    written = Voice(None, False)
    found = answers.answer_segments(vocabulary, prompt, np.array(new), (), written)
    assert [(s.kind, s.content if s.kind == "text" else s.tokens) for s in found] == [
        ("text", "the [Hu7] [Study]"),
        ("speech", "[Hu9]" * 30),
    ]
    (cut,) = answers.answer_segments(vocabulary, prompt, np.array(new), ("7] ",), written)
    assert cut.content == "the [Hu"


def test_a_lone_surrogate_is_refused(vocabulary):
    with pytest.raises(PromptError, match=r"position 1 of the text holds '\\udc00', half of a character"):
        Segment.text("a\udc00")
    with pytest.raises(PromptError, match="half of a character"):
        encoder(vocabulary).encode("[Text]\ud83d")


TASKS = {
    "asr": (Segment.speech("[Hu3][Hu4][Hu9]"), "[Speech][Hu3][Hu4][Hu9][ASR]", "text"),
    "tts": (Segment.text("the [Hu1] cat"), "[Text]the [Hu1] cat[TTS]", "speech"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_writes_the_prompt_as_training_does(vocabulary, task):
    """Its ids are the start of the document that the recipe of the same name makes of the pair."""
    from spirit_jax.data.sequences import Sequencer
    from spirit_jax.data.unit_record import UnitRecord

    segment, string, modality = TASKS[task]
    prompt = encoder(vocabulary).encode_task(segment, task)
    assert (prompt.string, prompt.output_modality, prompt.task) == (string, modality, task)
    record = UnitRecord("a", "the [Hu1] cat", units=SpeechUnits.from_string("[Hu3][Hu4][Hu9]"), duration_ms=120)
    (document,) = Sequencer(vocabulary, task, 4096)(record, None)
    assert document[: len(prompt.ids)].tolist() == prompt.ids.tolist()
    rest = vocabulary.decode(document[len(prompt.ids) :])
    assert rest == {"asr": "the [Hu1] cat", "tts": "[Hu3][Hu4][Hu9]"}[task]


def test_a_repeated_separator_is_left_out_of_a_transcript(vocabulary):
    prompt = encoder(vocabulary).encode_task(Segment.speech("[Hu3][Hu4]"), "asr")
    new = np.array(vocabulary.encode_text("[ASR]the cat"))
    (answer,) = answers.answer_segments(vocabulary, prompt, new, (), Voice(None, False))
    assert answer.content == "the cat"
    plain = EncodedPrompt(prompt.ids, "text", prompt.string)
    assert answers.answer_segments(vocabulary, plain, new, (), Voice(None, False))[0].content == "[ASR]the cat"


def test_a_prompt_that_does_not_fit_its_task_is_refused(vocabulary):
    encode = encoder(vocabulary).encode_task
    for prompt, task, message in [
        ([Segment.text("a"), Segment.speech("[Hu3]")], "asr", "task asr takes speech alone, found text, speech"),
        ([], "tts", "task tts takes text alone, found nothing"),
        ("[Text]a", "tts", "task tts writes the token string itself: give a segment of text"),
        (Segment.text("a"), "translate", "task must be one of asr, tts, found 'translate'"),
    ]:
        with pytest.raises(PromptError, match=message):
            encode(prompt, task)
    lm = checkpoints.load("small_base")
    with pytest.raises(PromptError, match="task asr answers in text, asked for was speech"):
        lm.encode_prompt(Segment.speech("[Hu3]"), "speech", "asr")
    (said,) = lm.generate(Segment.text("a"), task="tts", max_new_tokens=3)
    assert said.kind == "speech"
