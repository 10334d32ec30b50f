"""The compiled steps of inference compute with quantized and bfloat16 weights as they are stored."""

import dataclasses
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
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.optimized  # fusion decides which arrays exist


MODEL = LlamaConfig(512, 128, 512, 2, 4, 4)
BF16_INT8 = pytest.param("bfloat16", "int8", marks=pytest.mark.slow)


def compiled_steps(dtype: str, quantize: Quantization | None, slots: int):
    """The parameters of a small model, and its programs for prefill and decoding."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    config = dataclasses.replace(MODEL, dtype=dtype, param_dtype=dtype)
    full = jax.jit(lambda: llama.init_params(config, jax.random.key(0)))()
    params = network.arrange(config, quantized.quantize_tree(full, quantize) if quantize else full, mesh)
    features = SamplingFeatures(shortlist=0, repetition_penalty=False, grammar=False)
    program = DecodeProgram(config, mesh, end_ids=(), features=features)
    arrays, ones = ModelArrays(params, Constraints.none(512)), np.ones(slots, np.int32)
    state = steps.init_state(program, params, slots=slots, length=32, new_tokens=64)
    options = RowOptions.join([RowOptions.of(SamplingParams(), "text", max_new_tokens=8)] * slots)
    chunks = PromptChunks(
        tokens_bt=np.ones((slots, 4), np.int32),
        slots_b=np.arange(slots, dtype=np.int32),
        start_b=ones * 0,
        length_b=ones * 4,
        is_last_b=ones > 0,
    )
    prefill = steps.prefill.lower(program, arrays, state, options, chunks, first=False)
    limits = {"max_steps": np.int32(8), "until_free": np.bool_(False)}
    decode = steps.decode.lower(program, arrays, state, options, **limits)
    return params, [prefill.compile(), decode.compile()]


def largest(text: str | None, dtypes: str) -> int:
    """The number of elements of a program's largest array of some types."""
    assert text is not None
    return max(math.prod(map(int, shape.split(","))) for shape in re.findall(rf"= (?:{dtypes})\[([\d,]+)\]", text))


@pytest.mark.parametrize(("dtype", "quantize"), [BF16_INT8, ("float32", "int4")])
def test_no_layer_of_quantized_weights_exists_in_floats(monkeypatch, dtype, quantize):
    """Prefill and decode have no float array as large as the smallest matrix, and do not copy the integers."""
    monkeypatch.setattr(llama_cpu, "_BLOCK_BYTES", 2**14)
    params, programs = compiled_steps(dtype, quantize, slots=1)
    integers = sum(x.nbytes for x in jax.tree.leaves(params["layers"]) if x.dtype == jnp.int8)
    for program in programs:
        assert largest(program.as_text(), "f32|bf16") < MODEL.hidden_size**2
        memory = program.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < integers


def test_no_bfloat16_weight_is_converted_to_float32():
    """Prefill and decode of several rows have no float32 array as large as the smallest matrix."""
    for program in compiled_steps("bfloat16", None, slots=3)[1]:
        assert largest(program.as_text(), "f32") < MODEL.hidden_size**2
