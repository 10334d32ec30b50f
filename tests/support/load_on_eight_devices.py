"""Run by test_initialize.py in a process of its own, on eight simulated devices: weights straight into their shards."""

import os
import pathlib
import sys
import threading

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
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
from spirit_jax.parallel.sharding import tree_shardings
from spirit_jax.training.initialize import Weights, load_initial_params
from spirit_jax.vocabulary import Vocabulary

TEXTS = ["the cat sat on the mat and the dog ran after it", "a man, a plan: 12 canals!"] * 30
KNOWN, HIDDEN, INNER, LAYERS, HEADS, KV = 301, 512, 1408, 20, 8, 4  # two devices do not divide 301 rows


def hugging_face(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """A Llama as transformers writes one, in bfloat16's bigger sister float16."""
    rng = np.random.default_rng(0)
    size = HIDDEN // HEADS
    shapes = {
        "model.embed_tokens.weight": (KNOWN, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (KNOWN, HIDDEN),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KV * size, HIDDEN), "self_attn.v_proj": (KV * size, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    tensors = {name: rng.normal(0, 0.02, shape).astype(np.float16) for name, shape in shapes.items()}
    directory.mkdir()
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    config = {
        "model_type": "llama", "vocab_size": KNOWN, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "torch_dtype": "float16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return tensors


class Peak:
    """The most memory beyond mapped files, above what there was at the start, in bytes."""

    def __enter__(self):
        self.stop, self.start, self.most = threading.Event(), self._now(), 0
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def _watch(self):
        while not self.stop.wait(0.002):
            self.most = max(self.most, self._now() - self.start)

    @staticmethod
    def _now():
        status = pathlib.Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


def main(scratch: pathlib.Path) -> None:
    vocabulary = Vocabulary.train(TEXTS, KNOWN, "base")
    model = llama.LlamaConfig(
        vocab_size=1024, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV, max_position_embeddings=64,
    )  # fmt: skip
    theirs = hugging_face(scratch / "hf")
    run_jobs(plan_import(scratch / "hf", model="base"), scratch / "ours", overwrite=False)
    assert is_hugging_face(scratch / "hf")
    assert not is_hugging_face(scratch / "ours")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shardings = tree_shardings(mesh, llama.logical_axes(model), llama.abstract_params(model))
    size = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(llama.abstract_params(model)))
    jax.block_until_ready(jax.device_put(np.zeros(8)))
    for name in ("ours", "hf"):
        with Peak() as peak:
            weights = Weights(*open_hugging_face(scratch / name)) if name == "hf" else None
            params = load_initial_params(scratch / name, model, vocabulary, shardings, 0, weights)
            jax.block_until_ready(params)
        # the shards of all eight devices are one copy; 145 MiB of it are compilation and buffers, a second copy would be 229
        print(f"{name}: {size / 2**20:.0f} MiB of parameters, {peak.most / 2**20:.0f} MiB at most")
        assert peak.most < 2 * size, name
        gate = params["layers"]["mlp"]["gate_proj"]
        assert gate.addressable_shards[0].data.shape == (LAYERS, HIDDEN // 4, INNER // 2)
        for layer in range(LAYERS):
            for ours, part, shape in (
                ("mlp", "gate_proj", (HIDDEN, INNER)),
                ("self_attn", "q_proj", (HIDDEN, HEADS, -1)),
            ):
                want = theirs[f"model.layers.{layer}.{ours}.{part}.weight"].astype(np.float32).T.reshape(shape)
                np.testing.assert_array_equal(params["layers"][ours][part][layer], want)
        np.testing.assert_array_equal(
            params["embed_tokens"][:KNOWN], theirs["model.embed_tokens.weight"].astype(np.float32)
        )
        np.testing.assert_array_equal(params["lm_head"][:, :KNOWN], theirs["lm_head.weight"].astype(np.float32).T)
        assert np.asarray(params["embed_tokens"][KNOWN:]).std() > 0.01
        del params, gate


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
