"""STSP: rules and few-shot prompts of the released code, and the classifiers."""

import json
import re

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from spirit_jax.evaluation.classifiers import (
    HuggingFaceSpeechClassifier,
    LabelClassifier,
    ToneClassifier,
    WordClassifier,
    open_speech_classifier,
    sentiment_of,
)
from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.evaluation.stsp import EMOTIONS, compare, few_shot_prompt, few_shot_rows, read_predictions
from tests.support.goldens import golden_json
from tests.support.sounds import buzz

CASES = [case for case in golden_json("stsp_eval.json") if "refs" in case]
MISC = golden_json("stsp_misc.json")


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_accuracies_are_those_of_the_released_code(case, tmp_path):
    path = tmp_path / "pred.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in case["preds"]))
    if "raises" in case["result"]:
        with pytest.raises(BenchmarkError, match="comes twice|predictions for 6 references"):
            read_predictions(path, len(case["refs"]))
        return
    found = compare(case["refs"], read_predictions(path, len(case["refs"])), case["label"])
    (percent,) = re.findall(r"Accuracy: ([\d.]+|nan)%", case["stdout"])
    assert f"{100 * found.accuracy:.2f}" == percent
    assert len(found.unmatched) == case["stdout"].count("ERROR in matching"), "what is left out is named"


def test_emotions_have_the_sentiments_of_the_released_code():
    assert dict(EMOTIONS) == MISC["EMOTION_2_SENTIMENT"]
    assert sentiment_of("Hap") == "positive"
    assert sentiment_of("LABEL_0") is None


DIRECTIONS = {"text_text": "T>T", "speech_text": "S>T", "text_speech": "T>S", "speech_speech": "S>S"}


@pytest.mark.parametrize("case", MISC["few_shot"]["cases"], ids=lambda case: case["input_output"])
def test_few_shot_prompts_are_those_of_the_released_code(case):
    name = "2".join(part[0] for part in case["input_output"].split("_"))
    lengths = MISC["few_shot"]["wav_lengths"]

    def speech(file, half):
        middle = lengths[file] // 2
        return f"<{middle if half == 'first' else lengths[file] - middle} samples>"

    rows = few_shot_rows(MISC["few_shot"]["rows"][name], case["n_shots"], lambda size, count: range(count))
    assert few_shot_prompt(rows, DIRECTIONS[case["input_output"]], speech) == case["result"]["ok"]
    with pytest.raises(BenchmarkError, match="4 examples need 2 rows that are negative, found 1"):
        few_shot_rows(MISC["few_shot"]["rows"][name], 4, lambda size, count: range(count))


def test_a_hugging_face_classifier_gives_its_own_logits_on_our_network(tmp_path):
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, classifier_proj_size=12, num_labels=4,
        id2label={0: "neu", 1: "hap", 2: "ang", 3: "sad"}, label2id={"neu": 0, "hap": 1, "ang": 2, "sad": 3},
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    classifier = HuggingFaceSpeechClassifier(str(tmp_path))
    clip = buzz(np.linspace(100, 200, 24_000), 1.5)
    normalized = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
    with torch.no_grad():
        want = model(torch.tensor(normalized[None])).logits[0].numpy()
    np.testing.assert_allclose(LabelClassifier(str(tmp_path)).logits(clip), want, atol=1e-5)
    assert classifier.classify([clip]) == [("neutral", "positive", "negative", "negative")[int(want.argmax())]]

    settings = json.loads((tmp_path / "config.json").read_text())
    settings["id2label"]["1"] = "LABEL_1"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BenchmarkError, match="label 'LABEL_1' has no sentiment"):
        HuggingFaceSpeechClassifier(str(tmp_path))
    with pytest.raises(BenchmarkError, match="expected tone, or a Hugging Face directory"):
        open_speech_classifier("nowhere", [], [])


def test_the_built_in_classifiers_tell_clear_cases_apart():
    clips = [buzz(hertz + wide * np.sin(np.linspace(0, 20, 16_000))) for hertz in (100, 110) for wide in (2, 25, 60)]
    tones = ["negative", "neutral", "positive"] * 2
    assert ToneClassifier(clips, tones).classify(clips) == tones
    texts = ["What a lovely and happy day", "She was sad and hurt", "He went to the station"]
    assert WordClassifier().classify(texts) == ["positive", "negative", "neutral"]
    with pytest.raises(BenchmarkError, match="at least two sentiments"):
        ToneClassifier(clips[:1], tones[:1])
