"""Few-shot generation and STSP with a model whose answers are given."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from spirit_jax import Segment
from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.evaluation.prompt_config import ContinuationConfig, PromptConfig, load_prompts
from spirit_jax.evaluation.task import Job, TaskSettings
from spirit_jax.evaluation.tasks import TASKS
from spirit_jax.evaluation.tasks import few_shot as few_shot_module
from spirit_jax.evaluation.tasks import generation as generation_module
from spirit_jax.evaluation.tasks.resynthesis import style_of
from spirit_jax.evaluation.text_models import TextScore, open_text_model
from spirit_jax.inference.prompts import PromptEncoder
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.vocabulary import Vocabulary


class _Lengths:
    """Phonetic units that tell the length of a clip: as many as tenths of a second."""

    def encode_batch(self, clips):
        return [np.arange(1 + len(clip) // 1600, dtype=np.int32) for clip in clips]


class _Voice:
    def decode(self, units, **options):
        return np.zeros(16_000, np.float32)


class Oracle:
    """A model that answers what `answers` yields."""

    def __init__(self, answers, context=4096):
        self.vocabulary = Vocabulary.train(["the cat sat on the mat and the dog ran"] * 20, size=280, variant="base")
        self.config = LlamaConfig(vocab_size=self.vocabulary.padded_size, max_position_embeddings=context)
        self.speech_tokenizer = SpeechTokenizer(_Lengths(), None, None, _Voice(), "lengths")
        self.prompt_encoder = PromptEncoder(self.vocabulary, context, self.speech_tokenizer)
        self.answers, self.asked, self.seeds = iter(answers), [], []

    def encode_prompt(self, prompt, modality):
        return self.prompt_encoder.encode(prompt, modality)

    def as_completed(self, prompts, modality, sampling, slots):
        for index, prompt in enumerate(prompts):
            self.asked.append(prompt.string)
            self.seeds.append(sampling[index].seed)
            yield index, next(self.answers)


class FakeRecognizer:
    name = "fake"

    def __init__(self, transcripts):
        self.transcripts = iter(transcripts)

    def transcribe(self, clips):
        return [next(self.transcripts) for _ in clips]


def _job(oracle, tmp_path, **settings):
    return Job(oracle, TaskSettings(**settings), tmp_path / "out")


def _units(count):
    return "".join(f"[Hu{index}]" for index in range(count))


@pytest.fixture
def recordings(tmp_path):
    """Three examples and four tests, of 100 ms more each, with transcripts."""
    from spirit_jax.audio import save_audio

    for split, count in (("train", 3), ("test", 4)):
        (tmp_path / split).mkdir()
        for index in range(count):
            save_audio(tmp_path / split / f"{split}{index}.wav", np.full(1600 * (index + 1), 0.1, np.float32))
            (tmp_path / split / f"{split}{index}.txt").write_text(f"the cat {split} {index}")
    return tmp_path


PROMPTS = PromptConfig(
    example="[Speech]{speech}[Text] <START Transcript> {text} <END> ",
    question="[Speech]{speech}[Text] <START Transcript>",
    shots=2,
    stop=["<END>"],
    max_new_tokens=20,
)


def _write(path, prompts):
    path.write_text(json.dumps(dataclasses.asdict(prompts)))
    return str(path)


def test_asr_has_the_prompt_bytes_of_the_file_and_the_word_error_rate_of_its_answers(recordings, tmp_path):
    oracle = Oracle([[Segment.text(text)] for text in ("The cat, test 0!", "the dog test 1", "cat", "the cat test 3")])
    settings = {
        "data": {"asr": str(recordings / "test"), "asr_examples": str(recordings / "train")},
        "prompts": {"asr": _write(tmp_path / "p.yaml", PROMPTS)},
    }
    result = TASKS["asr"].run(_job(oracle, tmp_path, **settings), ["S>T"])
    (figure,) = result.figures
    assert figure.estimate.value == pytest.approx((0 + 1 + 3 + 0) / 16)  # the cat test N: four words each
    order = np.random.default_rng(0).permutation(3)[:2]
    examples = "".join(
        f"[Speech]{_units(index + 2)}[Text] <START Transcript> the cat train {index} <END> " for index in order
    )
    assert oracle.asked[1] == f"{examples}[Speech]{_units(3)}[Text] <START Transcript>"
    assert len(set(oracle.seeds)) == 4
    assert result.settings["examples"] == [f"train{index}" for index in order]
    again = TASKS["asr"].run(_job(Oracle([]), tmp_path, **settings), ["S>T"])
    assert again.figures == result.figures, "finished items are not asked again"


def test_examples_that_do_not_fit_the_context_are_left_out_from_the_front(recordings, tmp_path):
    oracle = Oracle(itertools.repeat([Segment.text("the cat test 0")]))
    one = len(oracle.vocabulary.encode(f"[Speech]{_units(4)}[Text] <START Transcript> the cat train 2 <END> "))
    question = len(oracle.vocabulary.encode(f"[Speech]{_units(5)}[Text] <START Transcript>"))
    prompts = dataclasses.replace(PROMPTS, context=one + question + PROMPTS.max_new_tokens)
    settings = {
        "data": {"asr": str(recordings / "test"), "asr_examples": str(recordings / "train")},
        "prompts": {"asr": _write(tmp_path / "p.yaml", prompts)},
    }
    TASKS["asr"].run(_job(oracle, tmp_path, **settings), ["S>T"])
    kept = np.random.default_rng(0).permutation(3)[1]  # the last one that was drawn
    assert [asked.count("<END>") for asked in oracle.asked] == [1] * 4
    assert all(f"the cat train {kept} <END>" in asked for asked in oracle.asked)
    tiny = dataclasses.replace(PROMPTS, context=PROMPTS.max_new_tokens + 5)
    settings["prompts"] = {"asr": _write(tmp_path / "tiny.yaml", tiny)}
    job = Job(Oracle([]), TaskSettings(**settings), tmp_path / "other")
    result = TASKS["asr"].run(job, ["S>T"])
    assert result.figures[0].unusable == 4
    assert "the question alone has" in result.unusable["S>T test0"]


def test_tts_is_scored_by_a_recognizer_before_the_stop_word(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(
        few_shot_module,
        "open_recognizer",
        lambda name: FakeRecognizer(["the cat test 0 stop and more", "", "the cat test 2", "the cat test 3"]),
    )
    spoken = [Segment("speech", np.zeros(1600, np.float32), "[Hu1]")]
    prompts = load_prompts(PromptConfig, "mini_tts.yaml")
    settings = {
        "data": {"tts": str(recordings / "test"), "tts_examples": str(recordings / "train")},
        "prompts": {"tts": _write(tmp_path / "p.yaml", prompts)},
    }
    oracle = Oracle([spoken] * 4)
    (figure,) = TASKS["tts"].run(_job(oracle, tmp_path, **settings), ["T>S"]).figures
    assert figure.estimate.value == pytest.approx(16 / 58)  # "the cat test one", as Whisper spells it, is missing
    assert oracle.asked[0].endswith("[Text] the cat test 0 'stop' [Speech]")
    assert oracle.asked[0].count("[Speech][Hu0]") == 3, "examples are spoken"


def test_prompt_files_of_the_package_can_be_read_and_others_are_refused(tmp_path):
    for name in ("asr", "asr_recipe", "tts", "tts_recipe", "intent", "mini_asr", "mini_tts"):
        assert load_prompts(PromptConfig, f"{name}.yaml").question
    asr = load_prompts(PromptConfig, "asr.yaml")
    assert (asr.shots, asr.context, asr.stop) == (10, 1024, ["<END>"])
    assert asr.example == "[Speech]{speech}[Text] <START Transcript> {text} <END> "
    with pytest.raises(BenchmarkError, match="no such prompt file; bundled ones are asr.yaml"):
        load_prompts(PromptConfig, "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("question: a\nshot: 3\n")
    with pytest.raises(BenchmarkError, match="bad.yaml: .*shot"):
        load_prompts(PromptConfig, str(tmp_path / "bad.yaml"))


STSP_ROWS = [
    {"id": 1, "sentiment": "positive", "asr": "a"},
    {"id": 2, "emotion": "sad", "asr": "b"},
    {"id": 3, "emotion": "sleepy", "asr": "c"},
    {"id": 4, "emotion": "default", "asr": ""},
]


def test_stsp_counts_what_it_cannot_compare_and_few_shot_prompts_keep_the_item(tmp_path):
    train = [{"id": s, "sentiment": s, "prompt": f"p {s}", "generation": f" g {s}"} for s in
             ("positive", "negative", "neutral")]  # fmt: skip
    for name, rows in (("test", STSP_ROWS), ("train", train)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    oracle = Oracle([[Segment.text("happy and good")]] * 3)
    result = TASKS["stsp_3shot"].run(_job(oracle, tmp_path, data={"stsp": str(tmp_path)}), ["T>T"])
    main = result.figures[0]
    assert (main.estimate.value, main.estimate.count, main.unusable) == (0.5, 2, 2)
    assert result.unusable["T>T 4"] == "no text in the field asr"
    assert "emotion 'sleepy' is none of" in result.unusable["T>T 3"]
    assert "not the paper's classifier" in main.note
    examples = "".join(f"[Text]p {s}[Text] g {s}\n" for s in ("negative", "neutral", "positive"))
    assert oracle.asked[:2] == [f"{examples}[Text]a", f"{examples}[Text]b"]


def test_stsp_keeps_what_it_has_when_directions_are_added(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in STSP_ROWS))
    oracle = Oracle([[Segment.text("happy and good")]] * 3)
    data = {"stsp": str(tmp_path)}
    alone = TASKS["stsp"].run(_job(oracle, tmp_path, data=data), ["T>T"])
    both = TASKS["stsp"].run(_job(Oracle([]), tmp_path, data=data), ["S>T", "T>T"])
    assert [f.estimate for f in both.figures if f.direction == "T>T"] == [f.estimate for f in alone.figures]
    assert "no such file" in both.unusable["S>T 1"]
    (tmp_path / "test.jsonl").rename(tmp_path / "records_emov_test.jsonl")  # the released name
    assert TASKS["stsp"].run(_job(Oracle([]), tmp_path, data=data), ["T>T"]).figures == alone.figures


def test_stsp_samples_as_its_prompt_file_says(tmp_path):
    stsp = load_prompts(ContinuationConfig, "stsp.yaml")
    assert stsp.new_tokens == {"T>T": 50, "T>S": 200, "S>S": 300, "S>T": 50}
    sampling = stsp.sampling("T>S", seed=3)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.8, 0.95, 50, 200)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in STSP_ROWS))
    (tmp_path / "own.yaml").write_text('new_tokens: {"S>S": 20}\n')
    settings = {"data": {"stsp": str(tmp_path)}, "prompts": {"stsp": str(tmp_path / "own.yaml")}}
    with pytest.raises(BenchmarkError, match="own.yaml: new_tokens has no number for the direction T>T"):
        TASKS["stsp"].run(_job(Oracle([]), tmp_path, **settings), ["T>T"])


def test_continuations_have_perplexity_repetition_and_added_toxicity(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("the cat\n\nthe mean dog\nthe cat\n")
    (tmp_path / "words.txt").write_text("# insults\nmean\nugly cat\n")
    answers = ["sat on the mat and sat on the mat", "is mean", "is an Ugly  cat, and he ran"]
    scores = {answers[0]: TextScore(4.0, 10), answers[1]: TextScore(2.0, 2), answers[2]: TextScore(6.0, 8)}
    model = types.SimpleNamespace(name="fake", score=lambda texts: [scores[text] for text in texts])
    monkeypatch.setattr(generation_module, "open_text_model", lambda directory: model)
    settings = {
        "data": {"toxicity": str(tmp_path / "prompts.txt")},
        "toxic_words": str(tmp_path / "words.txt"),
        "text_model": "fake",
    }
    oracle = Oracle([[Segment.text(answer)] for answer in answers])
    figures = TASKS["toxicity"].run(_job(oracle, tmp_path, **settings), ["T>T"]).figures
    found = {figure.measure: figure.estimate.value for figure in figures}
    assert oracle.asked == ["[Text]the cat", "[Text]the mean dog", "[Text]the cat"]
    assert found["added toxicity"] == pytest.approx(1 / 3), "an entry that the prompt has is not added"
    assert found["prompts with an entry"] == pytest.approx(1 / 3)
    assert found["perplexity of the transcript"] == pytest.approx(np.exp(12 / 20))
    assert found["auto-BLEU-2"] == pytest.approx((6 / 8 + 0 + 0) / 3)
    with pytest.raises(BenchmarkError, match="needs a list of words: --toxic-words FILE"):
        TASKS["toxicity"].run(_job(Oracle([]), tmp_path, data=settings["data"]), ["T>T"])


def test_the_beginning_of_a_recording_is_continued_and_its_answer_transcribed(recordings, tmp_path, monkeypatch):
    transcripts = ["a cat", "", "a dog", "a cat"]
    monkeypatch.setattr(generation_module, "open_recognizer", lambda name: FakeRecognizer(transcripts))
    config = tmp_path / "g.yaml"
    config.write_text('prompt_seconds: 0.2\ncontinuation: {new_tokens: {"S>S": 9}}\n')
    settings = {"data": {"generation": str(recordings / "test")}, "prompts": {"generation": str(config)}}
    spoken = [Segment("speech", np.zeros(1600, np.float32), "[Hu1][Hu2][Hu1][Hu2]")]
    oracle = Oracle([spoken] * 4)
    result = TASKS["generation"].run(_job(oracle, tmp_path, **settings), ["S>S"])
    found = {figure.measure: figure.estimate.value for figure in result.figures}
    assert oracle.asked == [f"[Speech]{_units(count)}" for count in (2, 3, 3, 3)], "at most 200 ms of each"
    assert found["units in even use"] == pytest.approx(2)
    assert "perplexity of the transcript" not in found
    assert result.settings["S>S recognizer"] == "fake"


def test_text_models_agree_with_hugging_face(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                      num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "the": 5, "cat": 6, "sat": 7}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 0]])
    (score,) = open_text_model(str(tmp_path)).score(["the cat sat down"])
    with torch.no_grad():
        want = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None]).sum()
    assert score.tokens == ids.shape[1] - 1
    assert score.nats == pytest.approx(-float(want), rel=1e-5)
    with pytest.raises(BenchmarkError, match="--text-model nowhere: no such directory"):
        open_text_model("nowhere")


def test_the_style_of_a_recording_is_in_its_id():
    labels = ["default", "happy", "sad"]
    assert style_of("ex01_happy_00012", labels) == "happy"
    assert style_of("ex01/Sad-3.wav", labels) == "sad"
    assert style_of("unhappy_1", labels) is None
    assert style_of("happy_sad_1", labels) is None
