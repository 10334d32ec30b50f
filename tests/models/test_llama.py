"""Every module of the Llama against Hugging Face's in torch (live, random weights), and against the golden vectors."""

import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig as TorchConfig
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

from spirit_jax.kernels import remat, use_kernels
from spirit_jax.models import llama
from spirit_jax.models.llama import Llama, LlamaConfig
from spirit_jax.models.llama_config import RopeScaling
from spirit_jax.models.losses import next_token_losses
from tests.support.goldens import golden_arrays, tolerance
from tests.support.llamas import FOLDERS, golden_llama, params_from_torch

pytestmark = pytest.mark.optimized

TINY = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
)
STRETCHED = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
CONFIGS = {
    "plain": TINY,
    "grouped": dataclasses.replace(TINY, num_key_value_heads=2),
    "tied": dataclasses.replace(TINY, tie_word_embeddings=True),
    "theta": dataclasses.replace(TINY, rope_theta=100_000.0),
    "llama3": dataclasses.replace(TINY, rope_theta=500.0, rope_scaling=STRETCHED, head_dim=16, num_key_value_heads=1),
    "head_dim": dataclasses.replace(TINY, head_dim=16, rms_norm_eps=1e-3),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
some_configs = pytest.mark.parametrize("config", [CONFIGS["grouped"], CONFIGS["llama3"]], ids=["grouped", "llama3"])


def torch_config(config: LlamaConfig) -> TorchConfig:
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
    )
    same += ("num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)}
    options = {name: getattr(config, name) for name in same}
    options |= {"rope_parameters": rope, "attn_implementation": "sdpa"}
    return TorchConfig(**options)


def torch_model(config: LlamaConfig) -> LlamaForCausalLM:
    """Random weights, the norms' included; wide enough that logits spread over several units."""
    model = LlamaForCausalLM(torch_config(config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model


def layer_params(model: LlamaForCausalLM, config: LlamaConfig) -> llama.Params:
    """The first layer's parameters."""
    return jax.tree.map(lambda x: x[0], params_from_torch(model.state_dict(), config)["layers"])


@functools.partial(jax.jit, static_argnums=0)
def hidden(config: LlamaConfig, params: llama.Params, tokens, positions=None, segment_ids=None, cache=None):
    return Llama(config).apply({"params": params}, tokens, positions, segment_ids, cache)


@functools.partial(jax.jit, static_argnums=0)
def logits(config: LlamaConfig, params: llama.Params, tokens) -> jax.Array:
    model = Llama(config)
    return jnp.asarray(model.apply({"params": params}, model.apply({"params": params}, tokens)[0], method="logits"))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, TINY.vocab_size, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(2, 12, TINY.hidden_size)).astype(np.float32)


@pytest.fixture(scope="module")
def grouped() -> tuple[LlamaConfig, llama.Params]:
    config = CONFIGS["grouped"]
    return config, params_from_torch(torch_model(config).state_dict(), config)


# Modules. 1e-5: float32 sums of tens of numbers of size one.


def torch_rotary(config: LlamaConfig, length: int):
    module = modeling_llama.LlamaRotaryEmbedding(torch_config(config))
    return module(torch.zeros(1, 1, 1), torch.arange(length)[None])


@torch.no_grad()
def test_norm(states):
    config = CONFIGS["head_dim"]
    model = torch_model(config)
    got = llama.RMSNorm(config).apply({"params": {"weight": model.model.norm.weight.numpy()}}, 1e-1 * states)
    np.testing.assert_allclose(jnp.asarray(got), model.model.norm(torch.tensor(1e-1 * states)), atol=1e-5)


@every_config
def test_rotary(config):
    length = 48
    x = np.random.default_rng(3).normal(size=(1, length, 4, config.head_size)).astype(np.float32)
    got = llama.apply_rotary(jnp.asarray(x), *llama.rotary_embedding(config, jnp.arange(length)[None]))
    heads_first = torch.tensor(x).transpose(1, 2)
    want, _ = modeling_llama.apply_rotary_pos_emb(heads_first, heads_first, *torch_rotary(config, length))
    np.testing.assert_allclose(got, want.transpose(1, 2), atol=1e-5)


@some_configs
@torch.no_grad()
def test_attention_module(config, states):
    model = torch_model(config)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    got, _ = jax.jit(llama.Attention(config).apply)(
        {"params": layer_params(model, config)["self_attn"]},
        states,
        llama.rotary_embedding(config, positions),
        positions,
    )
    module = cast(Any, model.model.layers[0]).self_attn
    want, _ = module(torch.tensor(states), position_embeddings=torch_rotary(config, 12), attention_mask=None)
    np.testing.assert_allclose(got, want, atol=1e-5)


@torch.no_grad()
def test_mlp(states):
    model = torch_model(TINY)
    got = llama.MLP(TINY).apply({"params": layer_params(model, TINY)["mlp"]}, states)
    want = cast(Any, model.model.layers[0]).mlp(torch.tensor(states))
    np.testing.assert_allclose(jnp.asarray(got), want, atol=1e-5)


@some_configs
@torch.no_grad()
def test_block(config, states):
    model = torch_model(config)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    (got, _), _ = jax.jit(llama.Block(config).apply)(
        {"params": layer_params(model, config)},
        (states, None),
        0,
        llama.rotary_embedding(config, positions),
        positions,
        None,
    )
    want = model.model.layers[0](torch.tensor(states), position_embeddings=torch_rotary(config, 12))
    np.testing.assert_allclose(got, want, atol=1e-5)


# The model. 1e-4 on logits of several units.


@every_config
@torch.no_grad()
def test_logits(config, tokens):
    model = torch_model(config)
    params = params_from_torch(model.state_dict(), config)
    want = model(torch.tensor(tokens).long()).logits
    assert want.std() > 1
    np.testing.assert_allclose(logits(config, params, tokens), want, atol=1e-4)


def test_tolerance_notices_a_wrong_base(tokens):
    """An ignored rope_theta or rope_scaling would change the logits by far more than their tolerance."""
    config = CONFIGS["llama3"]
    params = params_from_torch(torch_model(config).state_dict(), config)
    right = logits(config, params, tokens)
    for wrong in (
        dataclasses.replace(config, rope_theta=10_000.0),
        dataclasses.replace(config, rope_scaling=None),
        dataclasses.replace(config, rope_scaling=dataclasses.replace(STRETCHED, low_freq_factor=2.0)),
    ):
        assert np.abs(logits(wrong, params, tokens) - right).max() > 1e-2


@functools.partial(jax.jit, static_argnums=0)
def golden_outputs(config, params, ids):
    """Hidden states after the last norm, logits, and their logsumexp."""
    states, _ = Llama(config).apply({"params": params}, ids)
    scores = Llama(config).apply({"params": params}, states, method="logits")
    return states, scores, jax.nn.logsumexp(scores, axis=-1)


@pytest.mark.parametrize("name", FOLDERS)
def test_golden(name):
    """The released generation of Hugging Face's Llama, in the tolerances that its own float32 noise gives."""
    config, params = golden_llama(name)
    arrays = golden_arrays("llama.npz")
    prompts = sorted({key.split("/")[1] for key in arrays if key.startswith(f"{name}/")})
    assert prompts
    for prompt in prompts:
        want = {key.split("/")[2]: value for key, value in arrays.items() if key.startswith(f"{name}/{prompt}/")}
        ids = want.pop("ids")
        length = len(ids)
        padded = np.zeros((1, 32), np.int32)  # one shape for all prompts; causal, so the padding changes nothing
        padded[0, :length] = ids
        states, scores, logsumexp = (np.asarray(x[0, :length]) for x in golden_outputs(config, params, padded))
        got = {"hidden_last": states, "logits": scores, "logits_last": scores[-1], "logsumexp": logsumexp}
        if "top32_ids" in want:
            got["top32_logits"] = np.take_along_axis(scores, want["top32_ids"], axis=-1)
        for key in got.keys() & want.keys():
            atol = tolerance(f"llama/{name}/{prompt}/{key}")
            np.testing.assert_allclose(got[key], want[key], atol=atol, rtol=0, err_msg=f"{name}/{prompt}/{key}")
        if "argmax" in want:
            np.testing.assert_array_equal(np.argmax(scores, axis=-1), want["argmax"])


@pytest.mark.parametrize("kernels", ["reference", "cpu", "gpu", "tpu"])
def test_gradients_equal_torch(tokens, kernels):
    """With the kernels of every platform, for a shape that no fused kernel takes."""
    config = CONFIGS["grouped"]
    model = torch_model(config)
    model.train()
    batch = torch.tensor(tokens).long()
    torch.nn.functional.cross_entropy(
        model(batch[:, :-1]).logits.reshape(-1, config.vocab_size), batch[:, 1:].reshape(-1)
    ).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    want = params_from_torch(gradients, config)

    def loss(params):
        states, _ = Llama(config).apply({"params": params}, tokens[:, :-1])
        head = llama.head_weight(config, params)
        return next_token_losses(states, head, jnp.asarray(tokens[:, 1:]), jnp.full((2, 11), 1 / 22)).loss

    with use_kernels(kernels):
        got = jax.jit(jax.grad(loss))(params_from_torch(model.state_dict(), config))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), got, want)


# Packed rows and the cache: the same numbers as the plain forward. 1e-4 on hidden states of size one.


def test_packed_documents_equal_the_documents_alone(grouped, tokens):
    config, params = grouped
    first, second = tokens[0, :5], tokens[1, :4]
    row = np.concatenate([first, second, [0, 0, 0]])[None]
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3])
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]])
    packed, _ = hidden(config, params, row, positions, segments)
    assert np.isfinite(packed).all()
    for alone, where in ((first, slice(0, 5)), (second, slice(5, 9))):
        np.testing.assert_allclose(packed[:, where], hidden(config, params, alone[None])[0], atol=1e-4)
    unpacked, _ = hidden(config, params, row, positions)
    assert np.abs(packed[:, 5:9] - unpacked[:, 5:9]).max() > 0.1  # without segment ids the first leaks into the second


def test_decoding_with_a_cache_equals_the_full_forward(grouped, tokens):
    """A prompt in two pieces, then token by token."""
    config, params = grouped
    want, none = hidden(config, params, tokens)
    assert none is None
    cache = llama.init_cache(config, batch=2, length=16)
    for start, stop in ((0, 5), (5, 8), *((t, t + 1) for t in range(8, 12))):
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        got, cache = hidden(config, params, tokens[:, start:stop], positions, cache=cache)
        np.testing.assert_allclose(got, want[:, start:stop], atol=1e-4)


def test_prompts_of_different_lengths_can_share_a_batch(grouped, tokens):
    """Padded on the right, rows then decode at their own positions; an idle row leaves its cache as it was."""
    config, params = grouped
    lengths = np.array([3, 7])
    want, _ = hidden(config, params, tokens)
    padded = np.where(np.arange(7) < lengths[:, None], tokens[:, :7], 0)
    cache = llama.init_cache(config, batch=2, length=12)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    got, cache = hidden(config, params, padded, positions, cache=cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=1e-4)
    for offset in range(4):
        at = lengths + offset
        got, cache = hidden(config, params, tokens[[0, 1], at][:, None], at[:, None], cache=cache)
        np.testing.assert_allclose(got[:, 0], want[[0, 1], at], atol=1e-4)
    before = cache
    got, cache = hidden(config, params, tokens[[0, 1], [7, 11]][:, None], np.array([[7], [-1]]), cache=cache)
    np.testing.assert_allclose(got[0, 0], want[0, 7], atol=1e-4)
    np.testing.assert_array_equal(cache.k_lbskh[:, 1], before.k_lbskh[:, 1])
    _, cache = hidden(config, params, tokens[:, :1], np.array([[12], [12]]), cache=cache)
    np.testing.assert_array_equal(cache.v_lbskh[:, :, 8:], before.v_lbskh[:, :, 8:])  # beyond the end: not stored


def test_a_cache_refuses_packed_rows(grouped, tokens):
    config, params = grouped
    with pytest.raises(ValueError, match="exclude each other"):
        Llama(config).apply(
            {"params": params}, tokens, None, np.ones_like(tokens), llama.init_cache(config, batch=2, length=12)
        )


def test_an_id_outside_the_vocabulary_gives_nan(grouped):
    config, params = grouped
    assert np.isnan(hidden(config, params, np.array([[1, config.vocab_size]]))[0][0, 1]).all()


# Ways of computing the same.


@pytest.mark.slow
def test_unrolling_and_recomputing_change_nothing(grouped, tokens):
    config, params = grouped

    def value_and_grad(**options):
        model = Llama(dataclasses.replace(config, **options))
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(model.apply({"params": p}, tokens)[0] ** 3)))(params)

    want = value_and_grad()
    for options in (
        {"scan_layers": False},
        *({"remat": name} for name in remat.POLICIES if name != "none"),
        {"scan_layers": False, "remat": "full"},
    ):
        got = value_and_grad(**options)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5, err_msg=options), got, want)


@pytest.mark.slow
def test_recomputing_saves_memory():
    def temporaries(remat):
        config = dataclasses.replace(TINY, num_hidden_layers=6, remat=remat)
        tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)

        def loss(params, tokens):
            return jnp.sum(Llama(config).apply({"params": params}, tokens)[0])

        compiled = jax.jit(jax.grad(loss)).lower(llama.abstract_params(config), tokens).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    none, dots, full = map(temporaries, ("none", "dots", "full"))
    assert full < dots < none


def test_bfloat16_stays_close_to_float32(grouped, tokens):
    """Weights of 8 bits of mantissa over three layers: hidden states of size one differ by 0.03 in the mean square."""
    config, params = grouped
    half = dataclasses.replace(config, dtype="bfloat16")
    got, cache = hidden(half, params, tokens, cache=llama.init_cache(half, batch=2, length=12))
    assert got.dtype == cache.k_lbskh.dtype == jnp.bfloat16
    scores = jnp.asarray(Llama(half).apply({"params": params}, got, method="logits"))
    assert scores.dtype == jnp.float32
    want, _ = hidden(config, params, tokens)
    error = np.asarray(got.astype(jnp.float32) - want)
    assert np.sqrt((error**2).mean()) < 0.03
    abstract = llama.abstract_params(dataclasses.replace(config, param_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype(jnp.bfloat16)}


# The description of a model.


def test_fresh_parameters_have_their_spread_and_a_key_each(tokens):
    config = dataclasses.replace(TINY, hidden_size=64, vocab_size=512, initializer_range=0.05)
    params = jax.jit(llama.init_params, static_argnums=0)(config, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), llama.abstract_params(config)
    )
    for matrix in (params["embed_tokens"], params["lm_head"], params["layers"]["self_attn"]["o_proj"]):
        np.testing.assert_allclose([matrix.mean(), matrix.std()], [0, 0.05], atol=2e-3)
    np.testing.assert_array_equal(params["layers"]["input_layernorm"]["weight"], 1)
    gate = params["layers"]["mlp"]["gate_proj"]
    assert not np.array_equal(gate[0], gate[1])  # a key of its own for every layer


@every_config
def test_parameter_count_equals_torch(config):
    model = torch_model(config)
    assert llama.parameter_count(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("vocab_size", "count"), [(32512, 6_742_609_920), (32768, 6_744_707_072)])
def test_parameter_counts_at_full_size(vocab_size, count):
    """The counts of FULL_SIZE.json, Base and Expressive; nothing is allocated."""
    config = LlamaConfig(vocab_size=vocab_size, remat="full")
    assert llama.parameter_count(config) == count
    out = jax.eval_shape(
        lambda params, tokens: Llama(config).apply({"params": params}, tokens)[0],
        llama.abstract_params(config),
        jax.ShapeDtypeStruct((1, 4096), jnp.int32),
    )
    assert out.shape == (1, 4096, 4096)


@every_config
def test_logical_axes_name_every_dimension(config):
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "mlp": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "layers": config.num_hidden_layers,
    }
    axes = llama.logical_axes(config)
    shapes = jax.tree.map(lambda leaf: leaf.shape, llama.abstract_params(config))
    is_leaf = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.map(lambda names: tuple(sizes[name] for name in names), axes, is_leaf=is_leaf) == shapes


def test_activations_follow_the_logical_rules(grouped, tokens):
    """Each activation is named: rules that a mesh cannot satisfy are refused, whichever activation they concern."""
    config, params = grouped
    seen = set()

    def record(x, axes, **_):
        assert x.ndim == len(axes)
        seen.update(axes)
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "with_logical_constraint", record)
        Llama(config).apply({"params": params}, tokens)
        Llama(config).apply({"params": params}, jnp.zeros((2, 3, config.hidden_size)), method="logits")
    activations = {"embed", "heads", "kv_heads", "mlp", "vocab"}
    assert seen == {"batch", "sequence", "head_dim"} | {f"activation_{name}" for name in activations}


def test_flops_per_token_equal_the_compiler_s_count():
    """A single token's forward pass as XLA counts it, times three; and attention's share, summed over its keys."""
    config = dataclasses.replace(TINY, hidden_size=256, intermediate_size=512, vocab_size=2048, scan_layers=False)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def forward(params, tokens):
        model = Llama(config)
        states, _ = model.apply({"params": params}, tokens)
        return model.apply({"params": params}, states, method="logits")

    cost = jax.jit(forward).lower(llama.abstract_params(config), tokens).compile().cost_analysis()
    assert cost is not None
    np.testing.assert_allclose(
        llama.flops_per_token(config, 1), 3 * cost["flops"], rtol=0.02
    )  # norms and the like are 1 %
    length = 100
    width = config.num_attention_heads * config.head_size
    by_hand = sum(3 * config.num_hidden_layers * 2 * (2 * width) * keys for keys in range(1, length + 1)) / length
    got = llama.flops_per_token(config, length) - llama.flops_per_token(config, 1)
    assert math.isclose(got, by_hand - 3 * config.num_hidden_layers * 2 * (2 * width))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
        ({"head_dim": 7}, "must be even"),
        ({"vocab_size": 0}, "vocab_size must be positive, found 0"),
        ({"rope_theta": -1.0}, "rope_theta must be positive"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, found 'float16'"),
        ({"remat": "some"}, "remat must be one of none, dots, gate, mlp, full, found 'some'"),
    ],
)
def test_an_invalid_config_names_the_field_and_the_value(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(TINY, **wrong)
    assert "\n" not in str(error.value)


def test_an_invalid_rope_scaling_names_the_field_and_the_value():
    with pytest.raises(ValueError, match="low_freq_factor 4.0 must be positive and below high_freq_factor 1.0"):
        RopeScaling(low_freq_factor=4.0, high_freq_factor=1.0)
