"""One large model over the devices of several hosts: start the same command on every host, with the same arguments.

    python examples/multi_host.py CHECKPOINT "Once upon a time" [COORDINATOR_ADDRESS HOSTS THIS_HOST]

On TPU pods and Slurm the three last arguments are found out. Every process does the same and gets the same answer; the first
one prints it. Each host's devices share the model's layers (tensor parallelism), the hosts share its weights.
"""

import sys

import jax

from spirit_jax import Segment, SpiritLM
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

if len(sys.argv) not in (3, 6):
    sys.exit(__doc__)
checkpoint, text, *cluster = sys.argv[1:]
if cluster:
    address, hosts, this = cluster
    jax.distributed.initialize(address, int(hosts), int(this))
else:
    jax.distributed.initialize()
mesh = make_mesh(MeshConfig(data=1, fsdp=jax.process_count(), tensor=jax.local_device_count()))
model = SpiritLM.from_pretrained(checkpoint, mesh=mesh)
segments = model.generate([Segment.text(text)], "text", max_new_tokens=50)
if jax.process_index() == 0:
    print(" ".join(segment.content for segment in segments))
