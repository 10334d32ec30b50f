"""The model of lm-evaluation-harness, and metrics during training."""

import json
import sys
import types

import numpy as np
import pytest

from spirit_jax.evaluation import harness
from spirit_jax.evaluation.during_training import TaskMetrics
from spirit_jax.evaluation.harness import HarnessScorer, harness_model
from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.evaluation.run import evaluate
from spirit_jax.evaluation.task import TaskSettings
from tests.support import checkpoints
from tests.support.llamas import golden_llama


class Instance:
    """A request of the harness."""

    def __init__(self, *args):
        self.args = args


@pytest.fixture(scope="module")
def lm():
    return checkpoints.load("small_base")


def test_log_likelihoods_are_those_of_the_model(lm):
    pairs = [("hello", " world"), ("the cat", " sat on the mat"), ("", "alone")]
    found = HarnessScorer(lm).loglikelihood([Instance(*pair) for pair in pairs])
    wanted = lm.log_likelihood_batch([(f"[Text]{context}", text) for context, text in pairs])
    for (total, greedy), (value, tokens) in zip(found, wanted, strict=True):
        assert total == pytest.approx(value, abs=1e-4 * tokens)
        assert not greedy
    (answer,) = lm.generate("[Text]hello", "text", max_new_tokens=4)
    new = lm.generate_ids(lm.vocabulary.encode("[Text]hello"), "text", max_new_tokens=4)
    if lm.vocabulary.encode_text("hello" + answer.content)[-len(new) :] == new.tolist():
        assert HarnessScorer(lm).loglikelihood([Instance("hello", answer.content)])[0][1]


def test_a_long_string_counts_every_token_once_after_as_many_as_fit(lm, monkeypatch):
    scorer = HarnessScorer(lm)
    monkeypatch.setattr(scorer, "_context", 12)
    text = "the cat sat on the mat and looked at the moon for a long time"
    ids = scorer._ids(text)
    assert len(ids) > 24
    windows = scorer._windows(ids)
    assert sum(len(part) - start for part, start in windows) == len(ids) - len(scorer._prefix)
    assert all(len(part) <= 12 for part, _ in windows)
    assert len(windows[-1][0]) == 12, "the last window has a whole context"
    want = sum(float(lm.token_scores([[part]])[0][0].all[start:].sum()) for part, start in windows)
    assert scorer.loglikelihood_rolling([Instance(text)])[0] == pytest.approx(want, abs=1e-3)


def test_generation_stops_at_a_string_and_is_greedy_by_default(lm):
    (whole,) = HarnessScorer(lm).generate_until([Instance("hello", {"max_gen_toks": 20})])
    (segment,) = lm.generate("[Text]hello", "text", max_new_tokens=20)
    assert whole == segment.content
    stop = whole[5:7]
    (cut,) = HarnessScorer(lm).generate_until([Instance("hello", {"max_gen_toks": 20, "until": [stop]})])
    assert cut == whole[: whole.index(stop)].strip()


def test_the_harness_gets_a_model_of_its_own_class(lm, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BenchmarkError, match="pip install lm_eval"):
        harness_model(lm)
    base = type("LM", (), {})
    modules = {"lm_eval": types.ModuleType("lm_eval"), "lm_eval.api": types.ModuleType("lm_eval.api")}
    modules["lm_eval.api.model"] = types.ModuleType("lm_eval.api.model")
    modules["lm_eval.api.model"].LM = base
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    model = harness_model(lm)
    assert isinstance(model, base)
    assert isinstance(model, harness.HarnessScorer)


def test_metrics_during_training_are_the_figures_of_an_evaluation(lm, tmp_path):
    config, params = golden_llama("small_base")
    measure = TaskMetrics(["mini_sblimp:T"], 3, config, lm.vocabulary, tmp_path, lm.mesh)
    values = measure(params, 5)
    results = evaluate(lm, ["mini_sblimp:T"], tmp_path / "out", TaskSettings(limit=3))
    assert values == {"mini_sblimp/T": 100 * results.main("mini_sblimp", "T").estimate.value}
    lines = (tmp_path / "evaluation/5/items/mini_sblimp.T.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert np.isfinite(json.loads(lines[1])["hypotheses"][0]["all"])
    with pytest.raises(BenchmarkError, match="no task or group 'nothing'"):
        TaskMetrics(["nothing"], 3, config, lm.vocabulary, tmp_path, lm.mesh)
