"""`python -m scnf` and the console script `scnf`: signals are watched before anything else is imported."""

import sys
from collections.abc import Sequence

from scnf.interrupt import Interrupted, watch


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; see :func:`scnf.cli.main`, whose arguments and exit codes these are."""
    try:
        with watch():
            from scnf import cli

            return cli.main(argv)
    except Interrupted as error:
        print(f"scnf was interrupted by {error}: type the same again", file=sys.stderr)
        return 128 + error.number


if __name__ == "__main__":
    sys.exit(main())
