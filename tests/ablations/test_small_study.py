"""A study with real corpora, trainings and evaluations, from the command to the report."""

import json

import pytest
import yaml

from spirit_jax import ablate, checkpoint

MODEL = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 512}


def _write(path, values) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.slow
def test_a_study_of_a_few_steps_trains_evaluates_and_compares(tmp_path, capsys):
    def source(recipe):
        return {"path": "{inputs}/records/spirit_mini", "recipe": recipe, "weight": 0.5}

    base = {"sequence_length": 64, "global_batch_size": 2, "model": MODEL}
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
