"""Validates the contract with AsyncAPI's own parser, where Node is."""

import sys
from collections.abc import Sequence
from pathlib import Path

from shared.contract.__main__ import CURRENT, RELEASED
from tests.support.javascript import NoNode, run_node


def complaints(documents: Sequence[Path]) -> str:
    """Say what the parser finds wrong; nothing where all is well. Raises NoNode."""
    done = run_node("validate.mjs", *documents)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def main() -> int:
    """Exit with 1 where a document is not valid; where there is no Node, say so and go on."""
    try:
        found = complaints([CURRENT, RELEASED])
    except NoNode as why:
        print(f"the contract was not validated with the official parser: {why}")
        return 0
    print(found or "the contract is valid by the official parser of AsyncAPI")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
