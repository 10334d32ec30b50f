"""The command on the bundled benchmark, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from spirit_jax import SpiritLM, ablate, evaluate
from spirit_jax.core import buckets
from spirit_jax.evaluation import run
from spirit_jax.evaluation.items import Choice
from spirit_jax.evaluation.task import TaskSettings, missing
from spirit_jax.evaluation.tasks import GROUPS, TASKS, select
from spirit_jax.speech.tokenizer import SpeechTokenizer
from tests.support import checkpoints


class _Pulses:
    """Phonetic units that need no network; clips of different lengths have different units."""

    unit_count = 7

    def encode_batch(self, clips):
        return [np.arange(clip.size // 640, dtype=np.int32) % 7 for clip in clips]


@pytest.fixture(scope="module")
def run_mini():
    """Runs the command with a golden model on three items of each task of the bundled benchmark."""
    lm = checkpoints.load("small_base")
    tokenizer = SpeechTokenizer(_Pulses(), None, None, None, "pulses")
    model = SpiritLM(lm.params, lm.config, lm.vocabulary, tokenizer, lm.mesh)

    def run_command(output):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SpiritLM, "from_pretrained", lambda *args, **options: model)
            checkpoint = str(checkpoints.converted("small_base"))
            evaluate.main(["--checkpoint", checkpoint, "--tasks", "mini", "--limit", "3", "--output", str(output)])

    return run_command


@pytest.fixture(scope="module")
def output(run_mini, tmp_path_factory):
    """The results of the bundled benchmark."""
    folder = tmp_path_factory.mktemp("results")
    run_mini(folder)
    return folder


def test_the_bundled_benchmark_gives_a_table_with_intervals_and_fingerprints(output):
    found = json.loads((output / "results.json").read_text())
    assert list(found["tasks"]) == list(GROUPS["mini"])
    assert len(found["model"]["weights"]) == len(found["model"]["fingerprint"]) == 64
    for task in found["tasks"].values():
        mains = [figure for figure in task["figures"] if figure["is_main"]]
        assert mains
        assert all(0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 for figure in mains)
        assert all(figure["unusable"] == 0 for figure in mains)
    report = (output / "results.md").read_text()
    assert "| mini_stories | S>T" in report
    assert "sum, modality, flat" in report
    assert {path.name for path in (output / "items").iterdir()} >= {"mini_stories.T_to_S.jsonl", "mini_tone.S.jsonl"}


def test_the_same_command_again_scores_nothing(run_mini, output, monkeypatch, capsys):
    before = json.loads((output / "results.json").read_text())
    monkeypatch.setattr("spirit_jax.inference.scoring.token_scores", lambda *args: [] if not args[4] else 1 / 0)
    run_mini(output)
    assert "| mini_swuggy  | T" in capsys.readouterr().out
    assert json.loads((output / "results.json").read_text())["tasks"] == before["tasks"]


def test_an_evaluation_in_a_bucket_is_continued_there(run_mini, output, bucket, monkeypatch):
    for path in output.rglob("*"):
        if path.is_file() and path.suffix == ".jsonl":
            buckets.write_object(f"{bucket}/results/{path.relative_to(output)}", path)
    monkeypatch.setattr("spirit_jax.inference.scoring.token_scores", lambda *args: [] if not args[4] else 1 / 0)
    run_mini(f"{bucket}/results")
    found = json.loads(buckets.read_object(f"{bucket}/results/results.json"))
    assert found["tasks"] == json.loads((output / "results.json").read_text())["tasks"]
    assert {"results.md", "items/mini_tone.S.jsonl"} <= buckets.list_objects(f"{bucket}/results").keys()


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
    "unknown prompts": (
        ["--checkpoint", "x", "--output", "y", "--tasks", "mini", "--prompts.mini_asrr", "z"],
        "--prompts.mini_asrr: no task has a prompt file of this name; there are asr,",
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


@pytest.mark.parametrize("command", [evaluate, ablate])
def test_a_job_of_several_processes_is_refused(command, monkeypatch, capsys, tmp_path):
    for name, value in {"COORDINATOR_ADDRESS": "localhost:1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    model, study = ["--checkpoint", "x", "--tasks", "mini"], ["--config", "ablations/study.yaml"]
    with pytest.raises(SystemExit) as end:
        command.main([*(model if command is evaluate else study), "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "runs in one process, and the environment describes process 1 of 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_a_line(arguments, message, tmp_path, capsys):
    places = {"{model}": str(checkpoints.converted("small_base")), "{out}": str(tmp_path / "out")}
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
    copy = shutil.copytree(checkpoints.converted("small_base"), tmp_path / "copy")
    assert prints[0] == run.fingerprint_llm(copy), "the same parameters"


def test_a_model_in_8_bits_is_another_model():
    place = checkpoints.converted("small_base")
    plain, again, quantized = (
        run.describe_model(SpiritLM.from_pretrained(place, quantize=kind), place) for kind in (None, None, "int8")
    )
    assert plain["fingerprint"] == again["fingerprint"] != quantized["fingerprint"]
    assert (plain["quantize"], quantized["quantize"]) == (None, "int8")


def test_two_devices_give_the_scores_of_one(tmp_path):
    command = ["--checkpoint", str(checkpoints.converted("small_base")), "--tasks", "mini_sblimp:T", "--limit", "6"]
    evaluate.main([*command, "--output", str(tmp_path / "one")])
    subprocess.run(
        [sys.executable, "-m", "spirit_jax.evaluate", *command, "--output", str(tmp_path / "two"), "--mesh.data", "2"],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        check=True,
    )
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["model"]["device"].startswith("2 x ")
    assert one["tasks"]["mini_sblimp"]["figures"] == two["tasks"]["mini_sblimp"]["figures"]

    def scores(name):
        lines = (tmp_path / name / "items" / "mini_sblimp.T.jsonl").read_text().splitlines()[1:]
        return [h["all"] for line in map(json.loads, lines) for h in line["hypotheses"]]

    np.testing.assert_allclose(scores("two"), scores("one"), rtol=1e-5)
