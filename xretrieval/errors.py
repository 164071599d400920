"""The one exception a user is meant to read, the one of a run that gives way, and the one way to read and write a JSON file."""

import dataclasses
import json
import os
from typing import Any


class UserError(Exception):
    """Bad input. The message names the file, field, tensor or flag, and says what to do; the command line prints it in one line and exits 2."""


class Preempted(Exception):
    """The run was asked to give way (SIGTERM), and nothing is lost: the command line exits 75, and whatever started it starts it again.

    `step` is the one that was saved for it; None where none was under way.
    """

    def __init__(self, step: int | None = None):
        saved = "no step was under way" if step is None else f"step {step} is saved"
        super().__init__(f"stopped by SIGTERM; {saved}, and the same command goes on from there")


def check_fields(config: Any) -> None:
    """UserError where a field of a config dataclass is not of its declared type (int, float, bool, str): a text that was meant as a number, say."""
    kinds = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), field.type
        if kind not in kinds:
            continue
        fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
        if not fits:
            raise UserError(f"{type(config).__name__}.{field.name} = {value!r}: it must be {kinds[kind]}")


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file; UserError where it is not there or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; run the command that writes it") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run again the command that writes it") from error


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
    os.replace(temporary, path)
