"""Exported tokenizers: Hugging Face gives the ids of `Vocabulary`, and an import of an export gives the model back."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import transformers
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint, config
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.extend_vocabulary import check_unused_rows
from spirit_jax.convert.hugging_face import open_hugging_face
from spirit_jax.convert.plans import plan_import
from spirit_jax.convert.tokenizer_files import write_tokenizer
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.vocabulary import Vocabulary, added_tokens
from tests.support.goldens import golden
from tests.support.steps import random_params
from tests.support.tokenizers import plain_byte_level, plain_sentencepiece
from tests.support.trees import run_export, run_import

STRINGS = [
    "",
    "hello",
    " the cat",
    "[Speech]",
    "[Text]Hello  world,\n12 cats \u5b57\U0001f642",
    "[Text] the cat [Speech][St3][Pi2][Hu500][Hu0][Text]sat",
    "[Text]<0x0A> [Hu501] [hu1] [Hu 1][Hu1]x[Hu2",
    "the [Text] cat[Text]",
]


def tokenizer_of(kind, folder):
    """A text tokenizer as a run may have it; all but the last two are plain."""
    folder.mkdir()
    if kind == "sentencepiece":
        plain_sentencepiece(folder)
    elif kind == "byte level":
        plain_byte_level(folder)
    elif kind == "trained":
        Vocabulary.train(["the cat sat on the mat: hello, world"] * 20, 310).save(folder / "made")
        return folder / "made"
    else:
        shutil.copytree(golden(f"tokenizers/small_expressive_{kind}"), folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level", "trained", "added", "userdef"])
def test_hugging_face_gives_the_ids_of_the_vocabulary(kind, tmp_path):
    source = tokenizer_of(kind, tmp_path / "source")
    vocabulary = Vocabulary.load(source, "expressive")
    write_tokenizer(source, tmp_path / "written", "expressive")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    assert len(reader) == vocabulary.size
    assert (reader.bos_token_id, reader.eos_token_id) == (vocabulary.bos_id, vocabulary.eos_id)
    tokens = added_tokens("expressive")
    assert reader.convert_tokens_to_ids(tokens) == list(range(vocabulary.text_size, vocabulary.size))
    rng = np.random.default_rng(0)
    pieces = [*tokens, *"the cat sat on [ ] < H 12 \n \u5b57".split(" "), " ", "  ", "<0x41>", "hello", "world"]
    strings = STRINGS + ["".join(rng.choice(pieces, rng.integers(1, 30))) for _ in range(200)]
    for string in strings:
        ids = vocabulary.encode(string)
        assert reader(string).input_ids == ids, string
        assert reader.decode(ids, skip_special_tokens=True) == vocabulary.decode(ids), string
    again = Vocabulary.load(tmp_path / "written")
    assert not again.is_plain
    assert [again.encode(string) for string in strings] == [vocabulary.encode(string) for string in strings]


@pytest.mark.parametrize("kind", ["sentencepiece", "trained"])
def test_every_piece_alone_has_the_ids_of_the_vocabulary(kind, tmp_path):
    """A piece that no merges lead to, and the name of a byte, are text like any other."""
    source = tokenizer_of(kind, tmp_path / "source")
    vocabulary = Vocabulary.load(source, "expressive")
    write_tokenizer(source, tmp_path / "written", "expressive")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    for piece in reader.get_vocab():
        string = "[Text]" + piece.replace("\u2581", " ")
        if piece not in reader.all_special_tokens:
            assert reader(string).input_ids == vocabulary.encode(string), piece


@pytest.fixture(scope="module", params=["sentencepiece", "byte level", "trained"])
def step(request, tmp_path_factory):
    """A step of a run whose tokenizer is the user's, with random weights, as `train` writes it."""
    run = tmp_path_factory.mktemp("step") / "run"
    run.mkdir()
    shutil.copytree(tokenizer_of(request.param, run.parent / "source"), run / "tokenizer")
    vocabulary = Vocabulary.load(run / "tokenizer", "expressive")
    network = LlamaConfig(
        vocab_size=vocabulary.padded_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=8,
        num_key_value_heads=1,
    )
    params = random_params(network)
    ocp.save_checkpointables(run / "checkpoints/7", {checkpoint.LLM: params})
    checkpoint.write_config(run, {"model": config.to_dict(network), "variant": "expressive"})
    return run / "checkpoints/7"


def test_an_import_of_an_export_gives_the_same_rows_and_tokens(step, tmp_path):
    exported = run_export(step, tmp_path / "exported") / "spiritlm_model/spirit-lm-expressive-7b"
    back = run_import(exported, tmp_path / "back")
    before, after = (checkpoint.read_config(place)["model"] for place in (step, back))
    assert before == after
    paths = ("embed_tokens", "lm_head", "norm/weight", "layers/mlp/up_proj")
    one, two = (checkpoint.open_arrays(place, paths) for place in (step, back))
    for path in paths:
        np.testing.assert_array_equal(np.asarray(one[path]), np.asarray(two[path]))
    vocabularies = [
        Vocabulary.load(checkpoint.find(place, checkpoint.TOKENIZER), "expressive") for place in (step, back)
    ]
    reader = transformers.AutoTokenizer.from_pretrained(exported)
    for string in STRINGS:
        ids = vocabularies[0].encode(string)
        assert vocabularies[1].encode(string) == reader(string).input_ids == ids
    model = transformers.LlamaForCausalLM.from_pretrained(exported)
    np.testing.assert_array_equal(model.model.embed_tokens.weight.detach().numpy(), np.asarray(one["embed_tokens"]))


def test_an_import_refuses_trained_rows_that_the_tokenizer_does_not_name(tmp_path):
    """A tokenizer that lost the speech tokens of its model, and chat tokens that only the weights know."""
    folder = tmp_path / "hf"
    folder.mkdir()
    known = plain_sentencepiece(folder)
    rng = np.random.default_rng(0)
    spirit = Vocabulary.load(folder, "base").padded_size
    for rows, scales in ((spirit, 0.02), (known + 32, rng.lognormal(0, 0.5, (known + 32, 1)) * 0.02)):
        weights = rng.standard_normal((rows, 64)) * scales
        hf_config = transformers.LlamaConfig(
            vocab_size=rows, hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=True,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(hf_config)
        model.model.embed_tokens.weight.data[:] = model.model.embed_tokens.weight.new_tensor(weights)
        model.save_pretrained(folder)
        for read in (lambda: plan_import(folder, model="expressive"), lambda: open_hugging_face(folder)):
            with pytest.raises(
                ConversionError, match=rf"the embedding's {rows} rows are .*resize_token_embeddings\({known}\)"
            ):
                read()


@pytest.mark.parametrize("kind", ["random", "decayed", "zero", "equal", "mean", "uniform", "few"])
def test_rows_that_only_pad_an_embedding_are_not_taken_for_trained(kind, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    known = plain_sentencepiece(folder)
    vocabulary = Vocabulary.load(folder, "base")
    rng = np.random.default_rng(0)
    trained = rng.standard_normal((known, 128)) * rng.lognormal(0, 0.5, (known, 1))
    random = rng.standard_normal((200, 128))
    padding = {
        "random": random,
        "decayed": random * 1e-9 + trained.mean(0),
        "zero": np.zeros((200, 128)),
        "equal": np.repeat(random[:1], 200, 0),
        "mean": trained.mean(0) + 1e-5 * random,  # as transformers resizes
        "uniform": rng.uniform(-1, 1, (200, 128)),
        "few": trained[:3],
    }[kind]
    check_unused_rows(np.concatenate([trained, padding]).astype(np.float32), vocabulary, "hf")
    with pytest.raises(ConversionError, match=f"trained from row {known} on"):
        check_unused_rows(np.concatenate([trained, trained[:200]]).astype(np.float32), vocabulary, "hf")


def test_added_tokens_of_a_plain_tokenizer_are_noted_and_left_out(tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    known = plain_sentencepiece(folder)
    tokens = {"added_tokens_decoder": {"1": {"content": "<s>"}, str(known): {"content": "<pad>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": known + 1}))
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    hf_config = transformers.LlamaConfig(vocab_size=known + 2, eos_token_id=[2, known + 1], **sizes)
    transformers.LlamaForCausalLM(hf_config).save_pretrained(folder)
    (job,) = plan_import(folder, model="base")
    notes = "\n".join(job.notes)
    assert "added tokens are left out, because speech tokens take their ids: <pad>, <extra>" in notes
    assert f"answers do not end at the ids {known + 1}, which are not text tokens here" in notes
    converted = run_import(folder, tmp_path / "converted", model="base")
    reader = transformers.AutoTokenizer.from_pretrained(converted / "tokenizer")
    assert reader.convert_ids_to_tokens([known, known + 1]) == ["[Text]", "[Speech]"]
    (folder / "added_tokens.json").write_text("[]")
    with pytest.raises(ConversionError, match=r"added_tokens\.json: not the ids of added tokens"):
        plan_import(folder, model="base")


def test_a_byte_level_tokenizer_without_a_list_of_added_tokens_is_extended(tmp_path):
    plain_byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    del content["added_tokens"]
    path.write_text(json.dumps(content))
    write_tokenizer(tmp_path, tmp_path / "written", "base")
    assert Vocabulary.load(tmp_path / "written").size == Vocabulary.load(tmp_path, "base").size
