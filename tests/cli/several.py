"""`funcnet train digits` as one of several processes, with a small net, for `test_mesh`."""

import os
import sys

from funcnet import verifier
from funcnet.cli import main
from funcnet.nets import convnet
from funcnet.tasks import digits

CONFIG = convnet.Config((8, 8, 1), channels=(4,), hidden=256)
OPTIONS = "train", "digits", "--epochs", "1", "--mesh", "data=2,tensor=2", "--shard", "fsdp"

if __name__ == "__main__":
    digits.config = lambda options: CONFIG
    verifier.verify_model = lambda *_, **__: verifier.Report(())
    own = ("--seed", os.environ["JAX_PROCESS_ID"]) if os.environ.get("DIFFERENT") else ()
    sys.exit(main([*OPTIONS, "--distributed", *own, *sys.argv[1:]]))
