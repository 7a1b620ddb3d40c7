"""Writes the contract's files: `python -m shared.contract`, at a release with `--release`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.contract.asyncapi import document
from shared.contract.catalogue import Json, all_messages
from shared.contract.schemas import schema_file

FOLDER: Final = Path(__file__).parent
CURRENT: Final = FOLDER / "asyncapi.json"
RELEASED: Final = FOLDER / "released" / "asyncapi.json"
SCHEMAS: Final = FOLDER / "schemas"


def contract_files() -> Iterator[tuple[Path, str]]:
    """Every file of the contract and its content."""
    yield CURRENT, encoded(document())
    for message in all_messages():
        yield SCHEMAS / f"{message.name}.json", encoded(schema_file(message))


def encoded(content: Json) -> str:
    """Write a file's content as people read it in a diff."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the files anew; with `--release` also freeze them as what the next ones must keep."""
    parser = argparse.ArgumentParser(prog="python -m shared.contract", description=__doc__)
    parser.add_argument("--release", action="store_true", help="freeze it as the last release's")
    release = parser.parse_args().release
    for old in SCHEMAS.glob("*.json"):
        old.unlink()
    for path, content in contract_files():
        _write(path, content)
    if release:
        _write(RELEASED, encoded(document()))


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
