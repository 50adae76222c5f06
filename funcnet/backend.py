"""What is known about the machine below: jaxlib versions that compute wrong numbers, the guard, and probes.

XLA:CPU hands some work to a library, YNNPACK. In several jaxlib versions that path computes garbage, silently,
or is slow; one XLA flag takes the affected work off it. `guard` sets the flag when funcnet is imported, for the
versions that were measured and no others (an unknown XLA flag aborts the process). docs/guard.md has the tables.

Everything here that is not a probe works without importing jax, so that `import funcnet` costs next to nothing.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = [
    "FAULTS",
    "SUSPECTS",
    "Fault",
    "GuardWarning",
    "Probe",
    "facts",
    "guard",
    "guard_state",
    "jaxlib_version",
    "known_faults",
    "probes",
]

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_SWITCH = "FUNCNET_XLA_GUARD"

