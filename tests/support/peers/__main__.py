"""`python -m tests.support.peers NAME...`: build peers, or find them in the cache, and print where they are."""

from __future__ import annotations

import argparse
import sys

from tests.support.peers import RECIPES, PeerError, peer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="+", choices=list(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    for name in parser.parse_args().name:
        try:
            print(f"{name}: {peer(name)}", flush=True)
        except PeerError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
