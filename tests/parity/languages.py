"""Writes tests/data/parity/mteb_fleurs.json: language and script of each FLEURS code, as the mteb package has them."""

import json
import pathlib

from mteb.tasks.retrieval.multilingual.fleurs import _FLEURS_EVAL_LANGS

OUT = pathlib.Path(__file__).parents[1] / "data" / "parity"


def write(out: pathlib.Path) -> None:
    """Writes the file into `out`."""
    found = {code: list(languages) for code, languages in sorted(_FLEURS_EVAL_LANGS.items())}
    (out / "mteb_fleurs.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write(OUT)
