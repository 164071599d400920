"""The licence of a released model, as its folder tells it: it goes along with whatever is made from the model."""

import pathlib
import re
from typing import NamedTuple

_GEMMA_TERMS = """Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
(https://ai.google.dev/gemma/terms). They hold for this folder and for every model that is trained from it: whoever passes one on must pass on
these terms, this notice, and the restrictions on use that the terms name.
"""
_UNKNOWN = """Its licence is not known: the folder it came from has neither a licence in the front matter of README.md nor a LICENSE file. Find out
what its owner allows before you use or pass on this folder, and write it here.
"""


class Licence(NamedTuple):
    """The licence of a released model.

    Attributes:
      name: in short, as its card says; "unknown" where nothing does.
      terms: what a NOTICE says of it.
      files: content of its LICENSE files by name.
    """

    name: str
    terms: str
    files: dict[str, bytes]


def read_licence(source: pathlib.Path, family: str) -> Licence:
    """What a model's folder, and its family (`model_type`), say of its licence."""
    files = {path.name: path.read_bytes() for path in sorted(source.glob("LICENSE*")) if path.is_file()}
    card = source / "README.md"
    front = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL) if card.exists() else None
    said = dict(re.findall(r"^(license(?:_name|_link)?):[ \t]*['\"]?([^'\"\r\n#]+?)['\"]?[ \t]*$", front[1] if front else "", re.MULTILINE))
    name = said.get("license_name", said.get("license", ""))
    # From Gemma 4 on the licence is Apache-2.0, which its card says.
    of_gemma = family.startswith("gemma") and not family.startswith("gemma4")
    terms = [_GEMMA_TERMS] if of_gemma else []
    if name:
        link = f" ({said['license_link']})" if "license_link" in said else ""
        terms.append(f"Licence, as its card says: {name}{link}.\n")
    if files:
        terms.append(f"Licence files that came with it: {', '.join(files)}.\n")
    for path in sorted(source.glob("NOTICE*")):
        if path.is_file():
            terms.append(f"Its own {path.name}:\n{path.read_text(encoding='utf-8', errors='replace').rstrip()}\n")
    fallback = "gemma" if of_gemma else f"see {next(iter(files))}" if files else "unknown"
    if not terms:
        terms.append(_UNKNOWN)
    return Licence(name or fallback, "".join(terms), files)
