"""The same script on one device and on many: where each parameter and each batch lies on a mesh.

A mesh is JAX's own, ``jax.make_mesh``; the one table is a dict of the names in a net's `specs`, each with the
axis of the mesh, or the axes, that it is split over:

>>> DP | {"h": "tensor", "d_hidden": "tensor"}
{'h': 'tensor', 'd_hidden': 'tensor'}
"""

from funcnet.shard.batches import place
from funcnet.shard.collectives import Collective, collectives
from funcnet.shard.cost import Cost, Sent, Times, cost
from funcnet.shard.layout import DP, FSDP, TP, init, of, table
from funcnet.shard.machines import MACHINES, Machine
from funcnet.shard.pipeline import pipeline
from funcnet.shard.plan import Plan, plan

__all__ = [
    "DP",
    "FSDP",
    "MACHINES",
    "TP",
    "Collective",
    "Cost",
    "Machine",
    "Plan",
    "Sent",
    "Times",
    "collectives",
    "cost",
    "init",
    "of",
    "pipeline",
    "place",
    "plan",
    "table",
]
