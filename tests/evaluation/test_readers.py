"""Readers of published benchmarks on small files in their layouts."""

import json

import numpy as np
import pytest

from spirit_jax.audio import AudioError, save_audio
from spirit_jax.evaluation.items import BenchmarkError, Choice, Clip, Unusable
from spirit_jax.evaluation.speech_sets import open_intents, open_speech_set
from spirit_jax.evaluation.stsp import read_references
from spirit_jax.evaluation.tasks.mmlu import read_mmlu
from spirit_jax.evaluation.tasks.salmon import read_salmon

SOUND = np.full(1600, 0.1, np.float32)


def _question(number, answer):
    return f'"Question {number}, with a comma?",one,"two\nlines",three,four,{answer}\n'


@pytest.fixture
def mmlu(tmp_path):
    """Two subjects in the authors' layout, each with five examples and two questions."""
    for split, answers in (("dev", "ABCDA"), ("test", "CB")):
        (tmp_path / split).mkdir()
        for subject in ("abstract_algebra", "virology"):
            rows = "".join(_question(number, answer) for number, answer in enumerate(answers))
            (tmp_path / split / f"{subject}_{split}.csv").write_text(rows)
    return tmp_path


def test_mmlu_asks_after_five_examples_and_puts_the_right_letter_first(mmlu):
    items = read_mmlu(mmlu, "T")
    assert [(item.id, item.group) for item in items] == [
        ("abstract_algebra/0", "abstract_algebra"),
        ("abstract_algebra/1", "abstract_algebra"),
        ("virology/0", "virology"),
        ("virology/1", "virology"),
    ]
    first = items[0]
    assert isinstance(first, Choice)
    assert [hypothesis.scored[0].text for hypothesis in first.hypotheses] == [" C", " A", " B", " D"]
    (context,) = first.hypotheses[0].context
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    answers = "A. one\nB. two\nlines\nC. three\nD. four\nAnswer:"
    shots = "".join(f"Question {n}, with a comma?\n{answers} {letter}\n\n" for n, letter in enumerate("ABCDA"))
    assert context.text == f"{head}{shots}Question 0, with a comma?\n{answers}"
    (mmlu / "test" / "virology_test.csv").write_text(f"{_question(0, 'C')}\n{_question(1, 'B')}\n")
    assert read_mmlu(mmlu, "T") == items, "empty lines are no questions"


@pytest.mark.parametrize("answer", ["", "AB", "E"])
def test_mmlu_without_a_letter_as_answer_is_unusable(mmlu, answer):
    path = mmlu / "test" / "virology_test.csv"
    path.write_text(_question(0, "A") + _question(1, answer))
    (*usable, problem) = read_mmlu(mmlu, "T")
    assert len(usable) == 2
    assert isinstance(problem, Unusable)
    assert problem.reason == f"{path}, row 2: expected a question, four answers and A, B, C or D"


def test_mmlu_reads_the_parquet_files_of_hugging_face(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "virology").mkdir()
    for split, answers in (("dev", (0, 1, 2, 3, 0)), ("test", (3,))):
        rows = [
            {"question": f"q{n}", "subject": "virology", "choices": ["w", "x", "y", "z"], "answer": answer}
            for n, answer in enumerate(answers)
        ]
        path = tmp_path / "virology" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (item,) = read_mmlu(tmp_path, "T")
    assert item.hypotheses[0].scored[0].text == " D"
    assert item.hypotheses[0].context[0].text.endswith("q0\nA. w\nB. x\nC. y\nD. z\nAnswer:")


HEADER = ",path,speakerId,transcription,action,object,location"


def test_fluent_speech_commands_give_the_words_of_the_intent(tmp_path):
    rows = [
        '0,wavs/speakers/ab/1.wav,ab,"Turn on the lights, please",activate,lights,bedroom',
        "1,wavs/speakers/ab/2.wav,ab,Louder,increase,volume,none",
        "2,wavs/speakers/ab/3.wav,ab,Change language,change language,none,none",
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test_data.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (tmp_path / "wavs/speakers/ab").mkdir(parents=True)
    save_audio(tmp_path / "wavs/speakers/ab/1.wav", SOUND)
    items = open_intents(tmp_path, "test")
    assert [item.text for item in items] == ["activate lights bedroom", "increase volume", "change language"]
    assert items[0].load().shape == SOUND.shape
    with pytest.raises(AudioError, match=r"2\.wav"):
        items[1].load()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([",path,action", "0,a.wav,increase"], "column 'object' is missing; it has , path, action"),
        ([HEADER, "0,wavs/1.wav,ab,Lou"], "row 2: 4 columns, expected 7"),
        ([HEADER], "no row below"),
        ([], "column 'path' is missing; it has no columns"),
    ],
    ids=["column", "cut", "header", "empty"],
)
def test_a_table_that_is_not_complete_is_refused(tmp_path, lines, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test_data.csv").write_text("\n".join(lines))
    with pytest.raises(BenchmarkError, match=message):
        open_intents(tmp_path, "test")


@pytest.fixture
def librispeech(tmp_path):
    """Two splits of LibriSpeech with a chapter each, one recording of which is missing."""
    for split, speaker in (("dev-clean", "84"), ("test-clean", "61")):
        chapter = tmp_path / split / speaker / "70968"
        chapter.mkdir(parents=True)
        names = [f"{speaker}-70968-000{number}" for number in range(2)]
        (chapter / f"{speaker}-70968.trans.txt").write_text(f"{names[0]} HE BEGAN\n{names[1]} GIVE NOT SO\n")
        save_audio(chapter / f"{names[0]}.flac", SOUND)
    return tmp_path


def test_librispeech_gives_the_transcripts_of_a_split(librispeech):
    for place in (librispeech, librispeech / "test-clean"):
        items = open_speech_set(place, "test-clean")
        assert [(item.id, item.text) for item in items] == [
            ("61-70968-0000", "HE BEGAN"),
            ("61-70968-0001", "GIVE NOT SO"),
        ]
        assert items[0].load().shape == SOUND.shape
        with pytest.raises(AudioError, match=r"61-70968-0001\.flac"):
            items[1].load()


def test_a_missing_split_of_librispeech_is_never_replaced_by_another(librispeech):
    """Else the examples of a prompt would come from the recordings that are evaluated."""
    for place, found in ((librispeech, "dev-clean, test-clean"), (librispeech.parent, "/test-clean")):
        with pytest.raises(BenchmarkError, match=f"no split 'test-other' of LibriSpeech there, only .*{found}"):
            open_speech_set(place, "test-other")


def test_salmon_pairs_the_first_two_recordings_of_a_sample(tmp_path):
    folder = tmp_path / "rir_consistency"
    folder.mkdir()
    for name in ("sample_2_0", "sample_2_1", "sample_2_2", "sample_10_0", "sample_10_1", "sample_3_0", "readme"):
        save_audio(folder / f"{name}.wav", SOUND)
    items = {item.id: item for item in read_salmon(tmp_path, "S")}
    assert {name for name, item in items.items() if isinstance(item, Unusable)} == {
        "rir_consistency/3",
        "rir_consistency/readme",
    }
    pair = items["rir_consistency/2"]
    assert isinstance(pair, Choice)
    clips = [hypothesis.scored[0] for hypothesis in pair.hypotheses]
    assert clips == [Clip((folder / "sample_2_0.wav",)), Clip((folder / "sample_2_1.wav",))]


@pytest.mark.parametrize(
    ("rows", "message"),
    [([{"asr": "a"}], "item 1: no id"), ([{"id": 7}, {"id": "7"}], "item 2: id 7 comes twice")],
    ids=["none", "twice"],
)
def test_items_of_stsp_have_ids_of_their_own(tmp_path, rows, message):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BenchmarkError, match=message):
        read_references(path)
