"""Preferences from a model's own answers."""

import json

import numpy as np
import pytest

from spirit_jax.core.errors import SpiritError
from spirit_jax.data.preferences import PreferenceData, Preferences
from spirit_jax.evaluation import ranking
from spirit_jax.evaluation.ranking_config import RankConfig
from spirit_jax.vocabulary import Vocabulary
from tests.support import checkpoints


def _settings(tmp_path, **changes) -> RankConfig:
    lines = [{"id": "a", "input": ["text:The old engine"]}, {"input": ["units:[Hu3][Hu7]", "text:It is"]}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    values = {
        "checkpoint": str(checkpoints.converted("small_expressive")),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "output": str(tmp_path / "preferences" / "train.jsonl"),
        "by": "likelihood",
        "output_modality": "text",
        "max_new_tokens": 12,
        "temperature": 2.0,
        "top_p": 1.0,
        "dtype": "float32",
    }
    return RankConfig(**{**values, **changes})


def test_the_most_likely_answer_is_chosen_and_training_reads_the_file(tmp_path, monkeypatch):
    """The small model hardly ever ends an answer, so that two given answers take the place of its own."""
    model = checkpoints.load("small_expressive")
    texts = (" aaaa", " the end")
    monkeypatch.setattr(ranking.SpiritLM, "from_pretrained", lambda *_, **__: model)
    ids = [np.array(model.vocabulary.encode_text(text), np.int32) for text in texts]
    monkeypatch.setattr(ranking, "_answers", lambda model, settings, prompts: [ids, ids[:1]])
    message = ranking.rank(_settings(tmp_path))
    assert "1 preferences" in message
    assert "1 prompts whose answers are equally good" in message
    (line,) = map(json.loads, (tmp_path / "preferences" / "train.jsonl").read_text().splitlines())
    sums = [np.divide(*model.log_likelihood("", f"[Text]{text.strip()}")) for text in texts]
    best = int(np.argmax(sums))
    assert (line["id"], line["input"]) == ("a", ["text:The old engine"])
    assert (line["chosen"], line["rejected"]) == ([f"text:{texts[best]}"], [f"text:{texts[1 - best]}"])
    np.testing.assert_allclose(line["scores"], sorted(sums, reverse=True), rtol=1e-5)
    vocabulary = Vocabulary.load(checkpoints.converted("small_expressive") / "tokenizer")
    assert len(Preferences(PreferenceData(str(tmp_path / "preferences")), "train", vocabulary, 64)) == 1


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("[St3][Hu1][Hu2][St5][Hu4][Hu5]", 1.0),
        ("[Hu1][Hu2]", 0.5),  # continues in the style at the end of the prompt
        ("[St3][Hu1][St9][Hu2][Hu3][Hu4]", 0.25),
        ("[St9][Hu1]", 0.0),
        ("[Text] and so", 0.0),
    ],
)
def test_an_answer_keeps_the_styles_that_it_shares_with_its_prompt(answer, kept):
    """The prompt has two phonetic units of each of two styles."""
    model = checkpoints.load("small_expressive")
    prompt, ids = (
        np.array(model.vocabulary.encode(string)[len(model.vocabulary.prefix) :], np.int32)
        for string in ("[Text]a[Speech][St3][Pi2][Hu7][Hu9][St5][Hu1][Hu2]", f"[Speech]{answer}")
    )
    assert ranking.kept_tone(model, prompt, ids[1:]) == pytest.approx(kept)


def test_the_answer_in_the_tone_of_the_prompt_is_chosen(tmp_path, monkeypatch):
    model = checkpoints.load("small_expressive")
    monkeypatch.setattr(ranking.SpiritLM, "from_pretrained", lambda *_, **__: model)
    prefix = len(model.vocabulary.prefix) + 1  # and the modality token
    other, same = (
        np.array(model.vocabulary.encode(f"[Speech]{units}")[prefix:], np.int32)
        for units in ("[St2][Hu5]", "[St3][Hu5]")
    )
    monkeypatch.setattr(ranking, "_answers", lambda model, settings, prompts: [[other, same]])
    settings = _settings(tmp_path, by="tone", output_modality="speech")
    line = {"input": ["units:[St3][Pi1][Hu3][Hu7]"]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    ranking.rank(settings)
    (line,) = map(json.loads, (tmp_path / "preferences" / "train.jsonl").read_text().splitlines())
    assert (line["chosen"], line["rejected"], line["scores"]) == (
        ["units:[St3][Hu5]"],
        ["units:[St2][Hu5]"],
        [1.0, 0.0],
    )


def test_ids_become_segments():
    model = checkpoints.load("small_expressive")
    string = "[Speech][St3][Pi2][Hu7][Hu9][Text] and so[Speech][Hu1]"
    ids = model.vocabulary.encode(string)[len(model.vocabulary.prefix) :]
    assert ranking.strings(model, ids) == ["units:[St3][Pi2][Hu7][Hu9]", "text: and so", "units:[Hu1]"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "wer"}, 'prompt.*1: "reference" must be a text'),
        ({"by": "tone"}, "prompt.*1: no style units in the input"),
        ({"samples": 1}, "samples must be at least 2, found 1"),
    ],
)
def test_prompts_and_options_that_cannot_be_ranked_are_refused(tmp_path, changes, message):
    with pytest.raises((SpiritError, ValueError), match=message):
        ranking.rank(_settings(tmp_path, **changes))
