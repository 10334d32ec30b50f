"""Spread one large model over the devices of several hosts: start the same command on every host.

    python examples/multi_host.py CHECKPOINT "Once upon a time" [COORDINATOR_ADDRESS HOSTS THIS_HOST]

On TPU pods and Slurm, JAX finds the last three arguments itself; elsewhere THIS_HOST differs from host to host. Every
process computes the same answer, and the first one prints it. The devices of a host share each layer (tensor
parallelism); the hosts share the weights.
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
    print(*(segment.content for segment in segments))
