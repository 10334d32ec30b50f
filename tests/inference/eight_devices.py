"""Run by test_sharded.py in a process of its own, on 8 simulated devices."""

import os
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from spirit_jax import SpiritLM
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

PROMPTS = ["[Text]hello", "[Text]The morning bus was late[Speech]", "[Speech][St1][Pi2][Hu3]"]
PAIR = ("[Text]hello", " world and more")


def greedy(lm: SpiritLM) -> list[str]:
    """Return the texts that continue the prompts."""
    answers = lm.generate_batch(PROMPTS, "text", max_new_tokens=16, temperature=0)
    return [str(segment.content) for answer in answers for segment in answer]


def drawn(lm: SpiritLM) -> list[int]:
    """Return ids drawn at temperature 1."""
    ids = lm.vocabulary.encode(PROMPTS[1])
    return lm.generate_ids(ids, "speech", max_new_tokens=8, temperature=1.0, seed=1).tolist()


def check_shard(lm: SpiritLM, sizes: tuple[int, int, int], quantize: Quantization | None = None) -> None:
    """Check that a weight lies in the shards of the table of rules."""
    weight = lm.params["layers"][0]["gate_up"]  # [F, 2, D]
    weight = weight[quantize] if quantize else weight
    shard = weight.addressable_shards[0].data.shape
    assert shard == (weight.shape[0] // sizes[2], 2, weight.shape[2] // sizes[1]), (sizes, shard)


def check_floats(directory: str) -> None:
    """Check that greedy and drawn tokens and scores are those of one device."""
    one = SpiritLM.from_pretrained(directory, dtype="float32")
    texts, ids, score = greedy(one), drawn(one), one.log_likelihood(*PAIR)[0]
    for sizes in ((1, 1, 4), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
        lm = SpiritLM.from_pretrained(directory, dtype="float32", mesh=mesh)
        check_shard(lm, sizes)
        assert greedy(lm) == texts, sizes
        assert drawn(lm) == ids, sizes
        assert abs(lm.log_likelihood(*PAIR)[0] - score) < 1e-3, sizes
        assert lm.logits(lm.vocabulary.encode(PROMPTS[0])).shape[-1] == lm.config.vocab_size


def check_quantized(directory: str) -> None:
    """Check that scores are those of the same form on one device; generation runs."""
    sizes = (2, 2, 2)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices())
    for quantize in ("int8", "int4"):
        one, lm = (SpiritLM.from_pretrained(directory, "float32", place, quantize) for place in (None, mesh))
        check_shard(lm, sizes, quantize)
        assert abs(lm.log_likelihood(*PAIR)[0] - one.log_likelihood(*PAIR)[0]) < 1e-3, quantize
    assert greedy(lm)  # of int4


def main(directory: str) -> None:
    """Run all checks, and say so."""
    check_floats(directory)
    check_quantized(directory)
    print("equal")


main(sys.argv[1])
