"""Train a model with `python train_flow_ssl.py --config config.yaml`, which is the same as `scnf train`."""

import sys

from scnf.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
