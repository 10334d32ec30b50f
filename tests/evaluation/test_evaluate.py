"""The command on the bundled benchmark, and what it refuses."""

import json

import pytest

from spirit_jax import evaluate
from spirit_jax.evaluation import run
from spirit_jax.evaluation.items import Choice
from spirit_jax.evaluation.task import TaskSettings, missing
from spirit_jax.evaluation.tasks import GROUPS, TASKS, select
from tests.support import checkpoints


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The results of the bundled benchmark, three items of each task, on a golden model with a speech tokenizer."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--checkpoint", str(checkpoints.with_speech("small_base")), "--tasks", "mini", "--limit", "3"]
    evaluate.main([*arguments, "--output", str(folder)])
    return folder


def test_the_bundled_benchmark_gives_a_table_with_intervals_and_fingerprints(output):
    found = json.loads((output / "results.json").read_text())
    assert list(found["tasks"]) == list(GROUPS["mini"])
    assert len(found["model"]["weights"]) == len(found["model"]["speech_tokenizer"]) == 64
    for task in found["tasks"].values():
        mains = [figure for figure in task["figures"] if figure["is_main"]]
        assert mains
        assert all(0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 for figure in mains)
        assert all(figure["unusable"] == 0 for figure in mains)
    report = (output / "results.md").read_text()
    assert "| mini_stories | S>T" in report
    assert "sum, modality, flat" in report
    assert {path.name for path in (output / "items").iterdir()} >= {"mini_stories.T_to_S.jsonl", "mini_tone.S.jsonl"}


def test_the_same_command_again_scores_nothing(output, monkeypatch, capsys):
    before = json.loads((output / "results.json").read_text())
    monkeypatch.setattr("spirit_jax.inference.scoring.token_scores", lambda *args: [] if not args[4] else 1 / 0)
    arguments = ["--checkpoint", str(checkpoints.with_speech("small_base")), "--tasks", "mini", "--limit", "3"]
    evaluate.main([*arguments, "--output", str(output)])
    assert "| mini_swuggy  | T" in capsys.readouterr().out
    assert json.loads((output / "results.json").read_text())["tasks"] == before["tasks"]


def test_the_bundled_benchmark_is_complete():
    """All items can be read, every ending is as often right as wrong, and no task has unusable items."""
    for name in GROUPS["mini"]:
        task = TASKS[name]
        for direction in task.about.directions:
            items = task.read(task.about.default, direction)
            assert len(items) >= 40
            assert all(isinstance(item, Choice) for item in items)
    endings = [[h.scored[0].text for h in item.hypotheses] for item in TASKS["mini_stories"].read(
        TASKS["mini_stories"].about.default, "S>T")]  # fmt: skip
    right, wrong = zip(*endings, strict=True)
    assert sorted(right) == sorted(wrong)


REFUSED = {
    "no task": (["--checkpoint", "x", "--output", "y"], "name the tasks: --tasks NAME,...; there are mini"),
    "unknown task": (["--checkpoint", "x", "--output", "y", "--tasks", "swugy"], "no task or group 'swugy'"),
    "unknown direction": (["--checkpoint", "x", "--output", "y", "--tasks", "mini_swuggy:S2T"], "no direction 'S>T'"),
    "unknown data": (
        ["--checkpoint", "x", "--output", "y", "--tasks", "mini", "--data.swugy", "z"],
        "--data.swugy: no task has data of this name",
    ),
    "no checkpoint": (["--tasks", "mini"], "--checkpoint DIR --output DIR"),
    "limit": (["--tasks", "mini", "--limit", "0"], "limit must be 1 or more, found 0"),
    "no data": (
        ["--checkpoint", "{model}", "--output", "{out}", "--tasks", "swuggy"],
        "get them from https://download",
    ),
    "missing data": (
        ["--checkpoint", "{model}", "--output", "{out}", "--tasks", "swuggy", "--data.swuggy", "/nowhere"],
        "--data.swuggy /nowhere: no such file or directory",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_a_line(arguments, message, tmp_path, capsys):
    places = {"{model}": str(checkpoints.with_speech("small_base")), "{out}": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as end:
        evaluate.main([places.get(argument, argument) for argument in arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_list_says_where_data_come_from_and_what_is_missing(capsys):
    evaluate.main(["--list"])
    printed = capsys.readouterr().out
    for name in TASKS:
        assert f"\n{name}  [" in f"\n{printed}"
    assert "missing here: data: --data.stsp DIR" in printed
    assert not [item for item in missing(TASKS["mini_swuggy"], TaskSettings()) if item.startswith("data")]


def test_tasks_and_directions_are_selected_once():
    chosen = {task.name: directions for task, directions in select(["mini_stories:T2S", "mini_stories:T+T>S,salmon"])}
    assert chosen == {"mini_stories": ("T>S", "T"), "salmon": ("S",)}


def test_a_model_is_known_by_its_parameters(tmp_path):
    names = ("small_base", "full_base")
    prints = [run.fingerprint_llm(checkpoints.converted(name)) for name in names]
    assert prints[0] != prints[1]
    assert prints[0] == run.fingerprint_llm(checkpoints.with_speech("small_base")), "the same parameters"
