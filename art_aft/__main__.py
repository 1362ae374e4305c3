"""`art-aft`, which is `python -m art_aft`, too."""

import sys

from art_aft.cli.exits import ended_by


def main() -> int:
    """Load the commands and run one. What fails in loading must not end with 1, which means "infected"."""
    try:
        from art_aft.cli.main import main as run
    except BaseException as error:  # ART and PyTorch raise anything where they are broken
        return ended_by(error, show="--traceback" in sys.argv, loading=True)
    return run()


if __name__ == "__main__":
    sys.exit(main())
