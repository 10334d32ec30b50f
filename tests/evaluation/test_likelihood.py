"""Likelihood tasks with a model whose preferences are known, and with items that cannot be used."""

import json

import numpy as np
import pytest
import torch

from spirit_jax.audio import encode_wav
from spirit_jax.evaluation.documents import Document, Score, encode
from spirit_jax.evaluation.items import BenchmarkError, Clip, Hypothesis, Text
from spirit_jax.evaluation.run import evaluate
from spirit_jax.evaluation.task import Job, TaskSettings
from spirit_jax.evaluation.tasks.stories import STORYCLOZE
from spirit_jax.evaluation.tasks.zerospeech import SBLIMP, SWUGGY
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary
from tests.support import checkpoints
from tests.support.bigrams import bigram_model
from tests.support.hugging_face import hugging_face_llama
from tests.support.sounds import buzz

LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([" ".join(LETTERS)] * 20, size=276, variant="base")


def _wav(seconds):
    """The content of a WAV file with a tone."""
    return encode_wav(buzz(120.0, seconds))


def _letter(vocabulary, letter):
    """The id of a letter, which is a piece of its own in this vocabulary."""
    (index,) = vocabulary.encode_text(letter)
    return index


@pytest.fixture(scope="module")
def lm(vocabulary):
    """After "a", "b" is e times as likely as "c", and "d" e times less likely; everything else is equally likely."""
    table = np.zeros((vocabulary.size, vocabulary.size), np.float32)
    a, b, d = (_letter(vocabulary, letter) for letter in "abd")
    table[a, b], table[a, d] = 1.0, -1.0
    return bigram_model(vocabulary, table, SpeechTokenizer(_Pulses(), None, None, None, "pulses"))


class _Pulses:
    """Phonetic units that are the same for every clip but its length."""

    def encode_batch(self, clips):
        return [np.arange(len(clip) // 640, dtype=np.int32) % 5 for clip in clips]


def _gold(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def _lexical(root, pairs):
    """A set with a pair (word, non-word, frequency) in one or two voices each."""
    rows = []
    for index, (word, other, frequency, voices) in enumerate(pairs):
        for voice in voices:
            rows.append(f"{index},w{index}{voice},{voice},{frequency},{word},,2,1")
            rows.append(f"{index},n{index}{voice},{voice},{frequency},{other},,2,0")
            for name in (f"w{index}{voice}", f"n{index}{voice}"):
                (root / "lexical" / "dev").mkdir(parents=True, exist_ok=True)
                (root / "lexical" / "dev" / f"{name}.wav").write_bytes(_wav(0.3))
    _gold(root / "lexical" / "dev" / "gold.csv", "id,filename,voice,frequency,word,phones,length,correct", rows)


def test_a_model_with_known_preferences_has_the_accuracy_of_arithmetic(lm, tmp_path):
    # right, wrong, tie, right: b beats c and d, c loses to b, e ties with f, c beats d
    _lexical(
        tmp_path / "data", [("ab", "ac", 3, "x"), ("ac", "ab", 0, "x"), ("ae", "af", 30, "x"), ("ac", "ad", 3, "x")]
    )
    results = evaluate(lm, ["swuggy:T"], tmp_path / "out", TaskSettings(data={"swuggy": str(tmp_path / "data")}))
    figures = {
        (f.group, *f.variant.values()): f.estimate for f in results.tasks["swuggy"].figures if f.direction == "T"
    }
    for normalization in ("sum", "mean", "whole"):
        for softmax in ("all", "modality"):
            assert figures["", "zerospeech", normalization, softmax].value == 2.5 / 4
    assert results.main("swuggy", "T").estimate.value == 2.5 / 4
    assert figures["frequency 1-5", "zerospeech", "mean", "all"].value == 1
    assert figures["frequency oov", "zerospeech", "mean", "all"].value == 0
    assert figures["in vocabulary", "zerospeech", "mean", "all"].value == pytest.approx(2.5 / 3)
    lines = [json.loads(line) for line in (tmp_path / "out/items/swuggy.T.jsonl").read_text().splitlines()[1:]]
    right, wrong = lines[0]["hypotheses"]
    # e / (e + 1/e + others) against 1 / (...): one nat between b and c
    assert right["all"] - wrong["all"] == pytest.approx(1.0, abs=1e-5)
    size = lm.config.vocab_size
    rest = lm.vocabulary.size - 2 + (size - lm.vocabulary.size) * np.exp(-30)
    first = -np.log(lm.vocabulary.size)  # the first letter, after [Text], among equally likely tokens
    assert right["all"] == pytest.approx(first + 1 - np.log(np.e + 1 / np.e + rest), abs=1e-4)
    text = lm.vocabulary.text_size
    assert right["modality"] == pytest.approx(-np.log(text) + 1 - np.log(np.e + 1 / np.e + text - 2), abs=1e-4)


def test_voices_are_averaged_before_items_and_a_submission_has_every_file(lm, tmp_path):
    _lexical(tmp_path / "data", [("ab", "ac", 3, "xyz"), ("ac", "ad", 3, "x")])
    results = evaluate(lm, ["swuggy:S"], tmp_path / "out", TaskSettings(data={"swuggy": str(tmp_path / "data")}))
    main = results.main("swuggy", "S")
    assert (main.estimate.value, main.estimate.count) == (0.5, 2), "all clips have the same units: ties"
    submission = (tmp_path / "out/submission/lexical/dev.txt").read_text().splitlines()
    names = [line.split(" ")[0] for line in submission]
    assert sorted(names) == sorted(path.stem for path in (tmp_path / "data/lexical/dev").glob("*.wav"))
    assert all(float(line.split(" ")[1]) < 0 for line in submission)


def test_a_test_set_without_answers_gives_a_submission_alone(lm, tmp_path):
    _lexical(tmp_path / "data", [("ab", "ac", 3, "x")])
    test = (tmp_path / "data/lexical/dev").rename(tmp_path / "data/lexical/test")
    (test / "gold.csv").unlink()
    results = evaluate(lm, ["swuggy:S"], tmp_path / "out", TaskSettings(data={"swuggy": str(test)}))
    assert results.main("swuggy", "S").estimate.count == 0
    submission = (tmp_path / "out/submission/lexical/test.txt").read_text().splitlines()
    assert sorted(line.split(" ")[0] for line in submission) == sorted(path.stem for path in test.glob("*.wav"))


def test_items_that_cannot_be_used_are_named_and_counted(lm, tmp_path):
    data = tmp_path / "data"
    _lexical(data, [("ab", "ac", 3, "x"), ("ab", "ac", 3, "x"), ("ab", "ac", 3, "x"), ("ab", "ac", 3, "x")])
    folder = data / "lexical" / "dev"
    (folder / "n0x.wav").unlink()
    (folder / "n1x.wav").write_bytes(_wav(0.05))  # 50 ms
    (folder / "n2x.wav").write_bytes(_wav(20.0))  # more units than the context of 256
    gold = (folder / "gold.csv").read_text() + "9,w0x,x,3,ab,,2,1\n"
    (folder / "gold.csv").write_text(gold)
    results = evaluate(lm, ["swuggy:S"], tmp_path / "out", TaskSettings(data={"swuggy": str(data)}))
    reasons = results.tasks["swuggy"].unusable
    assert {name: reason for name, reason in reasons.items() if "no audio file" in reason}.keys() == {"S 0-x"}
    assert "50 ms of audio are too short" in reasons["S 1-x"]
    assert "tokens, the model's context is 256" in reasons["S 2-x"]
    assert "1 correct and 0 incorrect rows" in reasons["S 9-x"]
    main = results.main("swuggy", "S")
    assert (main.estimate.count, main.unusable) == (1, 4)
    report = (tmp_path / "out/results.md").read_text()
    assert "swuggy: 4 items could not be used" in report
    assert "n0x: no audio file" in report
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["tasks"]["swuggy"]["unusable"] == dict(reasons)
    assert found["model"]["fingerprint"]


def test_pairs_of_sentences_are_matched_by_type_subtype_id_and_voice(lm, tmp_path):
    header = "id,filename,voice,type,subtype,transcription,correct"
    rows = [
        "1,a,x,kind,sub,ab,1",
        "2,c,x,kind,sub,ac,1",
        "2,d,x,kind,sub,ab,0",
        "1,b,x,kind,sub,ac,0",
        "1,e,y,kind,sub,ab,1",
        "1,f,y,kind,sub,ac,0",
    ]
    _gold(tmp_path / "syntactic/dev/gold.csv", header, rows)
    items = SBLIMP.read(tmp_path, "T")
    assert [(item.id, item.group) for item in items] == [("kind-sub-1-x", "kind"), ("kind-sub-2-x", "kind")]
    results = evaluate(lm, ["sblimp:T"], tmp_path / "out", TaskSettings(data={"sblimp": str(tmp_path)}))
    assert results.main("sblimp", "T").estimate.value == 0.5


def test_a_missing_column_and_a_missing_folder_are_named(tmp_path):
    _gold(tmp_path / "lexical/dev/gold.csv", "id,filename,voice", ["1,a,x"])
    with pytest.raises(BenchmarkError, match="gold.csv: column 'correct' is missing; it has id, filename, voice"):
        SWUGGY.read(tmp_path, "T")
    with pytest.raises(BenchmarkError, match="neither gold.csv nor lexical/dev/gold.csv there"):
        SWUGGY.read(tmp_path / "nothing", "T")
    _lexical(tmp_path / "words", [("ab", "ac", "many", "x")])
    with pytest.raises(BenchmarkError, match="gold.csv: frequency must be a number, found 'many'"):
        SWUGGY.read(tmp_path / "words", "T")


def test_rows_without_a_clear_partner_are_one_unusable_item(tmp_path):
    rows = ["1,a,x,3,ab,,2,1", "1,b,x,3,ab,,2,1", "1,c,x,3,ac,,2,0"]
    _gold(tmp_path / "gold.csv", "id,filename,voice,frequency,word,phones,length,correct", rows)
    (item,) = SWUGGY.read(tmp_path, "T")
    assert "2 correct and 1 incorrect rows" in item.reason


def test_stories_have_four_directions_and_say_what_is_missing(tmp_path):
    for role in ("correct", "incorrect", "mutual"):
        (tmp_path / f"7_{role}.txt").write_text(f"{role} text\n")
        (tmp_path / f"7_{role}.wav").write_bytes(_wav(0.3))
    wav = lambda role: Clip((tmp_path / f"7_{role}.wav",))  # noqa: E731
    read = {direction: STORYCLOZE.read(tmp_path, direction)[0] for direction in STORYCLOZE.about.directions}
    assert read["T"].hypotheses[0] == Hypothesis((Text("mutual text correct text"),))
    assert read["S"].hypotheses[1] == Hypothesis((Clip((*wav("mutual").files, *wav("incorrect").files)),))
    assert read["T>S"].hypotheses[0] == Hypothesis((wav("correct"),), (Text("mutual text "),))
    assert read["S>T"].hypotheses[1] == Hypothesis((Text("incorrect text"),), (wav("mutual"),))
    (tmp_path / "7_mutual.txt").unlink()
    (unusable,) = STORYCLOZE.read(tmp_path, "T>S")
    assert "7_mutual: no text of the story before its ending" in unusable.reason
    (whole,) = STORYCLOZE.read(tmp_path, "T")
    assert whole.hypotheses[0] == Hypothesis((Text("correct text"),)), "without a beginning, stories are whole"


def test_ids_are_those_of_the_string_form(vocabulary):
    clip = Clip(())
    units = {clip: SpeechUnits.from_string("[Hu3][Hu7]")}
    crossed = encode(vocabulary, Hypothesis((clip,), (Text("a b "),)), units)
    assert crossed.ids.tolist() == vocabulary.encode("[Text]a b [Speech][Hu3][Hu7]")
    assert crossed.start == len(crossed.ids) - 2
    same = encode(vocabulary, Hypothesis((Text(" c"),), (Text("a b"),)), {})
    assert same.ids.tolist() == vocabulary.encode("[Text]a b c")
    assert vocabulary.decode(same.ids[same.start :]).strip() == "c"
    whole = encode(vocabulary, Hypothesis((Text("a b"),)), {})
    assert whole.start == len(vocabulary.prefix) + 1


def test_an_interrupted_task_continues_where_it_was(lm, tmp_path, monkeypatch):
    data = tmp_path / "data"
    _lexical(data, [("ab", "ac", 3, "x")] * 6)
    settings = TaskSettings(data={"swuggy": str(data)})
    whole = evaluate(lm, ["swuggy:T"], tmp_path / "whole", settings)
    evaluate(lm, ["swuggy:T"], tmp_path / "out", settings)
    log = tmp_path / "out/items/swuggy.T.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20])  # killed in the middle of a line
    asked = []
    original = type(lm).token_scores
    monkeypatch.setattr(
        type(lm), "token_scores", lambda self, groups, n: (asked.append(len(groups)), original(self, groups, n))[1]
    )
    again = evaluate(lm, ["swuggy:T"], tmp_path / "out", settings)
    assert asked == [4], "two of six items were finished"
    assert again.main("swuggy", "T").estimate == whole.main("swuggy", "T").estimate
    with pytest.raises(BenchmarkError, match="belongs to another evaluation .data was.*--overwrite"):
        evaluate(lm, ["swuggy:T"], tmp_path / "out", TaskSettings(data={"swuggy": str(data)}, limit=3))
    table = np.zeros((lm.vocabulary.size, lm.vocabulary.size), np.float32)
    other = bigram_model(lm.vocabulary, table, lm.speech_tokenizer)
    with pytest.raises(BenchmarkError, match="belongs to another evaluation .model was"):
        evaluate(other, ["swuggy:T"], tmp_path / "out", settings)
    assert Job(lm, settings, tmp_path / "out", overwrite=True).log("swuggy", "T", {"data": "other"}).lines == {}


def test_normalized_scores_are_slamkits_mean_over_tokens_by_torch():
    """slamkit averages the cross entropy of all tokens after the first, and can mask the other modality's logits."""
    model = checkpoints.load("small_expressive")
    units = np.random.default_rng(0).integers(model.vocabulary.hubert_offset, model.vocabulary.size, 30)
    ids = np.array([*model.vocabulary.prefix, model.vocabulary.speech_id, *units], np.int32)
    ((scores,),) = model.token_scores([[ids]])
    score = Score.of(Document(ids, len(ids) - len(units)), scores)
    with torch.no_grad():
        logits = hugging_face_llama("small_expressive")(torch.tensor(ids[None], dtype=torch.long)).logits[0, :-1]
    targets = torch.tensor(ids[1:], dtype=torch.long)
    mean = -torch.nn.functional.cross_entropy(logits, targets)
    assert score.value("whole", "all") == pytest.approx(mean.item(), abs=1e-4)
    masked = logits[-len(units) :].clone()
    masked[:, : model.vocabulary.hubert_offset] = masked[:, model.vocabulary.size :] = -torch.inf
    mean = -torch.nn.functional.cross_entropy(masked, targets[-len(units) :])
    assert score.value("mean", "modality") == pytest.approx(mean.item(), abs=1e-4)
