"""Studies: what is trained in which order, what is kept, and the statistics of the report."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import yaml

from spirit_jax import ablate, checkpoint, config
from spirit_jax.ablations import comparison, study
from spirit_jax.ablations.config import AblateConfig
from spirit_jax.core import buckets
from spirit_jax.core.files import write_file
from spirit_jax.core.leases import hold_anywhere
from spirit_jax.core.locks import LockError
from spirit_jax.core.working_copy import UPLOADING
from spirit_jax.run.config import TrainConfig

ROOT = pathlib.Path(__file__).parents[2]
BUNDLED = ROOT / "configs" / "ablations" / "study.yaml"
SMALL = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 512}
BENCHMARK = ROOT / "spirit_jax" / "evaluation" / "bundled" / "mini"


def test_intervals_hold_the_accuracy_and_a_difference_is_paired_by_item():
    rng = np.random.default_rng(1)
    hard = rng.random(200)
    good = (rng.random((3, 200)) < 0.3 + 0.6 * hard).astype(float)
    bad = np.minimum(good, rng.random((3, 200)) < 0.7)
    found, worse = comparison.accuracy(good), comparison.difference(bad, good)
    assert found.low < found.value == good.mean() < found.high
    assert found.count == 200
    assert worse.value == pytest.approx(bad.mean() - good.mean())
    assert worse.high < 0, "items that both models get right or wrong do not widen the interval"
    assert comparison.difference(good, good[:1]).low < 0 < comparison.difference(good, good[:1]).high
    single = comparison.accuracy(good[:1])
    assert found.high - found.low < single.high - single.low


def test_intervals_are_wider_where_seeds_differ():
    alike, apart = np.tile([1.0, 0.0], (3, 100)), np.zeros((3, 200))
    apart[0], apart[1, ::2] = 1, 1
    assert alike.mean() == apart.mean() == 0.5
    narrow, wide = comparison.accuracy(alike), comparison.accuracy(apart)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_the_bootstrap_in_blocks_of_memory_is_that_of_one_block(monkeypatch):
    outcomes = np.random.default_rng(0).random((3, 20)).round()
    whole = comparison.difference(outcomes, outcomes[:2])
    monkeypatch.setattr(comparison, "_BLOCK", 20 * 37)
    assert comparison.difference(outcomes, outcomes[:2]) == whole


@pytest.fixture
def settings(tmp_path):
    """The bundled study with a directory of the test, the bundled data, and two seeds."""
    options = ["--output", str(tmp_path / "study"), "--seeds", "2"]
    options += ["--data.mini_stories", str(BENCHMARK / "stories"), "--data.mini_tone", str(BENCHMARK / "salmon")]
    return config.load(AblateConfig, BUNDLED, options)


def test_the_bundled_conditions_differ_in_what_they_say(settings, tmp_path):
    runs = {name: study.training_config(settings, tmp_path, name, 1) for name in settings.conditions}
    base = config.to_dict(runs["interleaved"])

    def changed(name):
        flat = checkpoint.flatten(config.to_dict(runs[name]))
        return {key for key, value in flat.items() if value != checkpoint.flatten(base).get(key)} - {"run_directory"}

    assert changed("rope_10000") == {"model/rope_theta"}
    assert changed("expressive") == {"variant", "tokenizer"}
    assert changed("from_text") == {"init_from"}
    assert runs["from_text"].init_from == str(tmp_path / "runs/text-1/checkpoints" / str(runs["text"].loop.steps))
    aligned = {name: run.data.sources["aligned"] for name, run in runs.items() if "aligned" in run.data.sources}
    assert {name: source.recipe for name, source in aligned.items()} == {
        "interleaved": "interleaved", "from_text": "interleaved", "asr_tts": "asr_tts",
        "transcription": "transcription", "rope_10000": "interleaved", "expressive": "interleaved",
    }  # fmt: skip
    assert set(runs["separate"].data.sources) == {"text", "speech"}
    assert all(run.seed == 1 and run.speech_tokenizer == str(tmp_path / "inputs") for run in runs.values())
    assert len({run.run_directory for run in runs.values()}) == len(runs)


def _train(run: TrainConfig) -> None:
    """Write the files of a finished run, without training."""
    directory = pathlib.Path(run.run_directory)
    write_file(directory / checkpoint.STEPS / str(run.loop.steps) / checkpoint.LLM / "weights", "")
    checkpoint.write_config(directory, config.to_dict(run))


def _line(item: str, is_right: bool) -> dict:
    """The log's line of an item."""
    counts = {"name": "", "tokens": 1, "whole_tokens": 1}
    scores = (-1.0, -2.0) if is_right else (-2.0, -1.0)
    hypotheses = [counts | dict.fromkeys(("all", "modality", "whole_all", "whole_modality"), score) for score in scores]
    return {"id": item, "item": item, "group": "", "frequency": None, "hypotheses": hypotheses}


@pytest.fixture
def trained(monkeypatch):
    """Studies whose models are not trained: the names of those that would be. The fourth one is interrupted."""
    trained: list[str] = []

    def train(run):
        trained.append(pathlib.Path(run.run_directory).name)
        if len(trained) == 4:
            raise study.StudyError("interrupted")
        _train(run)

    def evaluate(settings, output, run):
        rng = np.random.default_rng(len(trained))
        right = 0.9 if run.name.startswith("interleaved") else 0.5
        figures = study.read_figures(settings)
        for figure in figures.values():
            path = figure.log(run)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [{"job": {}}, *(_line(str(item), rng.random() < right) for item in range(40))]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        tasks: dict[str, dict] = {}
        for figure in figures.values():
            data = tasks.setdefault(figure.task.name, {"data": {}})["data"]
            data[f"{figure.direction} fingerprint"] = figure.fingerprint
        results = {"model": {"checkpoint": str(checkpoint.latest_step(run))}, "tasks": tasks}
        (run / "evaluation" / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(study, "make_inputs", lambda *arguments: None)
    monkeypatch.setattr(study.job, "run", train)
    monkeypatch.setattr(study, "evaluate_run", evaluate)
    return trained


def _few(settings, **changes):
    """The study with the conditions around one comparison, on one task."""
    values = config.to_dict(settings)
    kept = ("interleaved", "separate", "text", "from_text")
    values["conditions"] = {name: values["conditions"][name] for name in kept}
    values["comparisons"] = [c for c in values["comparisons"] if c["first"] == "from_text"]
    values |= {"tasks": ["mini_stories:T2S"], "only": ["interleaved", "from_text"]}
    values["comparisons"][0]["figures"] = ["mini_stories:T>S"]
    return config.from_dict(AblateConfig, values | changes)


def test_a_study_trains_what_is_not_finished_and_reports_what_is(settings, tmp_path, trained):
    settings = _few(settings)
    with pytest.raises(study.StudyError, match="interrupted"):
        study.run_study(settings)
    assert trained == ["interleaved-0", "text-0", "from_text-0", "interleaved-1"], "a start is trained without a name"
    report = study.run_study(settings)
    assert trained[4:] == ["interleaved-1", "text-1", "from_text-1", "interleaved-2"]
    assert "separate" not in report.split("## Differences")[0]
    found = json.loads((tmp_path / "study" / "ablations.json").read_text())
    (gain,) = (d for d in found["differences"] if d["first"] == "from_text" and d["figure"] == "mini_stories:T>S")
    assert gain["high"] < 0
    study.run_study(settings)
    assert len(trained) == 8, "everything is finished"
    figures = study.read_figures(settings)
    changed = {name: dataclasses.replace(figure, fingerprint="other") for name, figure in figures.items()}
    assert study.read_results(settings, figures, tmp_path / "study")
    assert not study.read_results(settings, changed, tmp_path / "study"), "results on other items are not used"


def test_a_study_in_a_bucket_is_continued_on_another_machine(settings, trained, bucket, tmp_path, monkeypatch):
    settings = _few(settings, output=f"{bucket}/study")
    with pytest.raises(study.StudyError, match="interrupted"):
        study.run_study(settings)
    assert "runs/from_text-0/config.json" in buckets.list_objects(settings.output)
    monkeypatch.setenv("SPIRIT_BUCKET_CACHE", str(tmp_path / "another_machine"))
    report = study.run_study(settings)
    assert trained[4:] == ["interleaved-1", "text-1", "from_text-1", "interleaved-2"]
    assert buckets.read_object(f"{settings.output}/ablations.md").decode() == report
    buckets.write_object(f"{settings.output}/{UPLOADING}", b'["runs/interleaved-1/evaluation"]')
    study.run_study(settings)
    assert len(trained) == 8, "only the evaluation whose upload was cut short is repeated"
    assert UPLOADING not in buckets.list_objects(settings.output)
    with hold_anywhere(settings.output, ".ablate.lock", "ablation"), pytest.raises(LockError, match="is at work here"):
        study.run_study(settings)


def test_a_study_that_has_changed_is_refused(settings, tmp_path):
    run = study.training_config(settings, tmp_path, "text", 0)
    assert not study.is_trained(run)
    _train(run)
    assert study.is_trained(run)
    longer = dataclasses.replace(run, loop=dataclasses.replace(run.loop, steps=run.loop.steps + 1))
    with pytest.raises(study.StudyError, match="is a run of 100 steps, and the study asks for 101"):
        study.is_trained(longer)
    (tmp_path / "prepare.json").write_text(json.dumps({**config.to_dict(settings.prepare), "text_pieces": 300}))
    with pytest.raises(study.StudyError, match=r"was made with other options \(text_pieces\)"):
        study.make_inputs(settings.prepare, tmp_path, ["base"])


def test_what_cannot_be_studied_is_refused(settings, tmp_path, capsys):
    values = config.to_dict(settings)

    def refused(message, **changes):
        (tmp_path / "bad.yaml").write_text(json.dumps({**values, **changes}))
        with pytest.raises(SystemExit) as end:
            ablate.main(["--config", str(tmp_path / "bad.yaml")])
        assert end.value.code == 2
        assert message in capsys.readouterr().err

    refused("'nothing' is none of the conditions", only=["nothing"])
    refused("tasks: alignment compares no likelihoods", tasks=["alignment"], comparisons=[], data={})
    refused(
        "'mini_tone:T' is none of the figures", comparisons=[{**values["comparisons"][0], "figures": ["mini_tone:T"]}]
    )
    first = dict(values["conditions"]["from_text"])
    refused(
        "must be a condition that comes before", conditions={"from_text": first, **values["conditions"]}, comparisons=[]
    )
    (tmp_path / "run.yaml").write_text("model: {hidden_sizes: 3}\n")
    broken = {**values["conditions"]["separate"], "configs": [str(tmp_path / "run.yaml")]}
    refused("conditions.separate: ", conditions={"separate": broken}, comparisons=[])


def _write(path, values) -> str:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_of_a_few_steps_trains_evaluates_and_compares(tmp_path, capsys):
    def source(recipe):
        return {"path": "{inputs}/records/spirit_mini", "recipe": recipe, "weight": 0.5}

    base = {"variant": "base", "sequence_length": 64, "global_batch_size": 2, "model": SMALL}
    base |= {"loop": {"steps": 3, "log_every": 1, "evaluate_every": 0, "sample_every": 0}}
    base |= {"data": {"on_bad_record": "skip", "sources": {"text": source("text"), "aligned": source("interleaved")}}}
    both = _write(tmp_path / "both.yaml", base)
    text = _write(tmp_path / "text.yaml", {"loop": {"steps": 2}, "data": {"sources": {"text": source("text")}}})
    study = {
        "output": str(tmp_path / "study"),
        "prepare": {
            "corpora": ["spirit_mini"],
            "text_pieces": 400,
            "speech_tokenizer": {"phonetic_units": 20, "pitch_units": 4, "style_units": 4, "max_hours": 0.02},
        },
        "tasks": ["mini_stories:T2S"],
        "seeds": 1,
        "conditions": {
            "text": {"about": "text alone", "configs": [both, text]},
            "joint": {"about": "text and interleaved words", "configs": [both], "start": "text"},
        },
        "comparisons": [
            {"first": "joint", "second": "text", "figures": ["mini_stories:T>S"], "question": "Does it help?"}
        ],
    }
    config = _write(tmp_path / "study.yaml", study)
    ablate.main(["--config", config])
    output = capsys.readouterr().out
    assert "Does it help?" in output
    found = json.loads((tmp_path / "study/ablations.json").read_text())
    assert [(figure["condition"], figure["count"]) for figure in found["accuracies"]] == [("text", 80), ("joint", 80)]
    assert len(found["differences"]) == 1
    joint = tmp_path / "study/runs/joint-0"
    assert checkpoint.read_config(joint)["init_from"] == str(tmp_path / "study/runs/text-0/checkpoints/2")
    assert checkpoint.latest_step(joint).name == "3"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study/runs").rglob("*") if path.is_file()}
    ablate.main(["--config", config])
    assert before == {path: path.stat().st_mtime_ns for path in before}, "everything is finished"
