"""Loads weights into the shards of eight simulated devices and checks the bits, the shards and the memory.

    python -m tests.support.load_on_eight_devices EMPTY_DIRECTORY

It runs in a process of its own, because the simulated devices must be configured before JAX starts.
"""

import os
import pathlib
import sys
import threading

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ["JAX_PLATFORMS"] = "cpu"

import json

import jax
import numpy as np
import safetensors.numpy

from spirit_jax.convert.hugging_face import is_hugging_face, open_hugging_face
from spirit_jax.convert.jobs import run_jobs
from spirit_jax.convert.plans import plan_import
from spirit_jax.models import llama
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.training.initialize import Weights, load_initial_params
from spirit_jax.training.language_model import param_shardings
from spirit_jax.vocabulary import Vocabulary

TEXTS = ["the cat sat on the mat and the dog ran after it", "a man, a plan: 12 canals!"] * 30
KNOWN, HIDDEN, INNER, LAYERS, HEADS, KV = 301, 512, 1408, 20, 8, 4  # two devices do not divide 301 rows


def write_hugging_face_llama(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Write a Llama in float16 as transformers does, and return its tensors."""
    rng = np.random.default_rng(0)
    size = HIDDEN // HEADS
    shapes = {
        "model.embed_tokens.weight": (KNOWN, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (KNOWN, HIDDEN),
    }
    layer_shapes = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV * size, HIDDEN),
        "self_attn.v_proj": (KV * size, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    for layer in range(LAYERS):
        for name, shape in layer_shapes.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    tensors = {name: rng.normal(0, 0.02, shape).astype(np.float16) for name, shape in shapes.items()}
    directory.mkdir()
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    config = {
        "model_type": "llama",
        "vocab_size": KNOWN,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "torch_dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return tensors


class PeakMemory:
    """A context that measures the peak of anonymous memory (without mapped files) above its start, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self._stop, self._start, self.most = threading.Event(), self._now(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.most = max(self.most, self._now() - self._start)

    @staticmethod
    def _now() -> int:
        status = pathlib.Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


def check_loading(
    directory: pathlib.Path, weights: Weights | None, vocabulary: Vocabulary, tensors: dict[str, np.ndarray]
) -> None:
    """Load a directory on a mesh of 4 x 2 devices, and compare the parameters with the tensors of Hugging Face."""
    model = llama.LlamaConfig(
        vocab_size=1024,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        max_position_embeddings=64,
    )
    shardings = param_shardings(model, make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    size = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(llama.abstract_params(model)))
    jax.block_until_ready(jax.device_put(np.zeros(8)))
    with PeakMemory() as peak:
        params = load_initial_params(directory, model, vocabulary, shardings=shardings, seed=0, weights=weights)
        jax.block_until_ready(params)
    # The shards of all eight devices make up one copy. 145 MiB are compilation and buffers; a second copy would be 229.
    print(f"{directory}: {size / 2**20:.0f} MiB of parameters, {peak.most / 2**20:.0f} MiB at most")
    assert peak.most < 2 * size, directory
    gate = params["layers"]["mlp"]["gate_proj"]
    assert gate.addressable_shards[0].data.shape == (LAYERS, HIDDEN // 4, INNER // 2)
    for layer in range(LAYERS):
        for module, name, shape in (
            ("mlp", "gate_proj", (HIDDEN, INNER)),
            ("self_attn", "q_proj", (HIDDEN, HEADS, -1)),
        ):
            expected = tensors[f"model.layers.{layer}.{module}.{name}.weight"].astype(np.float32).T.reshape(shape)
            np.testing.assert_array_equal(params["layers"][module][name][layer], expected)
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    np.testing.assert_array_equal(params["embed_tokens"][:KNOWN], embedding.astype(np.float32))
    np.testing.assert_array_equal(params["lm_head"][:, :KNOWN], head.astype(np.float32).T)
    assert np.asarray(params["embed_tokens"][KNOWN:]).std() > 0.01


def main(scratch: pathlib.Path) -> None:
    vocabulary = Vocabulary.train(TEXTS, KNOWN, "base")
    released, converted = scratch / "hf", scratch / "ours"
    tensors = write_hugging_face_llama(released)
    run_jobs(plan_import(released, model="base"), converted, overwrite=False)
    assert is_hugging_face(released)
    assert not is_hugging_face(converted)
    check_loading(converted, None, vocabulary, tensors)
    config, tokenizer, load = open_hugging_face(released)
    check_loading(released, Weights(config=config, tokenizer=tokenizer, load=load), vocabulary, tensors)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
