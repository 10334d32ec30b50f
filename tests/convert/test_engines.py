"""An exported language model in Hugging Face's `generate`, as docs/engines.md has it."""

import pathlib
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spirit_jax import SpiritLM, checkpoint
from spirit_jax.convert.released_folder import FOLDER
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.vocabulary import Vocabulary
from tests.support import checkpoints
from tests.support.trees import run_export

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "engines.md"
TEXTS = ["The young chef opened the door.", "A dog ran over the green hill.", "We sing a quiet song at night."] * 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """The small expressive checkpoint with a tokenizer that was trained here, as the run of the page has."""
    directory = tmp_path_factory.mktemp("engines") / "checkpoint"
    shutil.copytree(checkpoints.converted("small_expressive"), directory)
    shutil.rmtree(directory / FOLDER)  # the tokenizer of the release, which would be written back
    place = checkpoint.find(directory, checkpoint.TOKENIZER)
    shutil.rmtree(place)
    Vocabulary.train(TEXTS, 300, "expressive").save(place)
    return directory


@pytest.fixture(scope="module")
def exported(trained) -> pathlib.Path:
    return run_export(trained, trained.parent / "exported") / "spiritlm_model"


def test_the_page_generates_the_ids_of_spirit_jax(trained, exported, monkeypatch, capsys):
    """The code of the page runs as it is printed, and gives the greedy ids of the same prompt."""
    code = re.search(r"```python\n(import torch.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(trained.parent)
    namespace: dict = {}
    exec(code[1], namespace)
    lm = SpiritLM.from_pretrained(trained, "float32")
    lm.sampling = SamplingParams()
    prompt = lm.vocabulary.encode("[Text]The young chef[Speech]")
    assert namespace["inputs"].input_ids[0].tolist() == prompt
    expected = lm.generate_ids(prompt, "any", max_new_tokens=50).tolist()
    assert namespace["output"][0].tolist() == [*prompt, *expected]
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert printed.startswith("<s>")
    assert "] [" not in printed


def test_unit_strings_are_one_token_each(exported):
    folder = next(exported.iterdir())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("[Speech][St1][Pi2][Hu3][Hu500]").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[-4:] == ["[St1]", "[Pi2]", "[Hu3]", "[Hu500]"]
    assert model.config.vocab_size >= len(tokenizer)
    assert model.config.eos_token_id == 2
    assert model.dtype in (torch.float32, torch.bfloat16)
