"""The compiled steps of inference compute with quantized weights as they are stored."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.inference import llama_cpu, network, steps
from spirit_jax.inference.grammar import Constraints
from spirit_jax.inference.sampling import SamplingFeatures
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.steps import DecodeProgram, ModelArrays, PromptChunks, RowOptions
from spirit_jax.models import llama, quantized
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.optimized  # fusion decides which arrays exist


BF16_INT8 = pytest.param("bfloat16", "int8", marks=pytest.mark.slow)


@pytest.mark.parametrize(("dtype", "quantize"), [BF16_INT8, ("float32", "int4")])
def test_no_layer_of_quantized_weights_exists_in_floats(monkeypatch, dtype, quantize):
    """Prefill and decode have no float array as large as the smallest matrix, and do not copy the integers."""
    monkeypatch.setattr(llama_cpu, "_BLOCK_BYTES", 2**14)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    config = LlamaConfig(512, 128, 512, 2, 4, 4, dtype=dtype, param_dtype=dtype)
    full = jax.jit(lambda: llama.init_params(config, jax.random.key(0)))()
    params = network.arrange(config, quantized.quantize_tree(full, quantize), mesh)
    features = SamplingFeatures(shortlist=0, repetition_penalty=False, grammar=False)
    program = DecodeProgram(config, mesh, end_ids=(), features=features)
    arrays, one = ModelArrays(params, Constraints.none(512)), np.ones(1, np.int32)
    state = steps.init_state(program, params, slots=1, length=64, new_tokens=64)
    options = RowOptions.of(SamplingParams(), "text", max_new_tokens=8)
    chunks = PromptChunks(
        tokens_bt=np.ones((1, 4), np.int32), slots_b=one * 0, start_b=one * 0, length_b=one * 4, is_last_b=one > 0
    )
    prefill = steps.prefill.lower(program, arrays, state, options, chunks, first=False)
    limits = {"max_steps": np.int32(8), "until_free": np.bool_(False)}
    decode = steps.decode.lower(program, arrays, state, options, **limits)
    integers = sum(x.nbytes for x in jax.tree.leaves(params["layers"]) if x.dtype == jnp.int8)
    for lowered in (prefill, decode):
        compiled = lowered.compile()
        text, memory = compiled.as_text(), compiled.memory_analysis()
        assert text is not None
        assert memory is not None
        shapes = re.findall(r"= (?:f32|bf16)\[([\d,]+)\]", text)
        assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < config.hidden_size**2
        assert memory.temp_size_in_bytes < integers
