"""Run by test_sharded.py in a process of its own, on 8 simulated devices."""

import os
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from spirit_jax import SpiritLM
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

PROMPTS = ["[Text]hello", "[Text]The morning bus was late[Speech]", "[Speech][St1][Pi2][Hu3]"]
PAIR = ("[Text]hello", " world and more")


def main(directory: str) -> None:
    one = SpiritLM.from_pretrained(directory, dtype="float32")
    want = [
        segment.content
        for answer in one.generate_batch(PROMPTS, "text", max_new_tokens=16, temperature=0)
        for segment in answer
    ]
    score = one.log_likelihood(*PAIR)[0]
    for sizes in ((1, 1, 4), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
        for quantize in (None, "int8", "int4") if sizes == (2, 2, 2) else (None,):
            lm = SpiritLM.from_pretrained(directory, dtype="float32", mesh=mesh, quantize=quantize)
            weight = lm.params["layers"][0]["gate_up"]  # [F, 2, D]
            weight = weight[quantize] if quantize else weight
            shard = weight.addressable_shards[0].data.shape
            assert shard == (weight.shape[0] // sizes[2], 2, weight.shape[2] // sizes[1]), (sizes, shard)
            got = [
                segment.content
                for answer in lm.generate_batch(PROMPTS, "text", max_new_tokens=16, temperature=0)
                for segment in answer
            ]
            assert quantize or got == want, (sizes, got, want)
            assert abs(lm.log_likelihood(*PAIR)[0] - score) < (2 if quantize else 1e-3), sizes
            if quantize:
                continue
            drawn = lm.generate_ids(
                lm.vocabulary.encode(PROMPTS[1]), "speech", max_new_tokens=8, temperature=1.0, seed=1
            )
            assert (
                drawn.tolist()
                == one.generate_ids(
                    one.vocabulary.encode(PROMPTS[1]), "speech", max_new_tokens=8, temperature=1.0, seed=1
                ).tolist()
            )
            assert lm.logits(lm.vocabulary.encode(PROMPTS[0])).shape[-1] == lm.config.vocab_size
    print("equal")


main(sys.argv[1])
