"""The command line. The only file that imports gin; each verb configures one root function, and imports what it needs when it runs."""

import argparse
import contextlib
import difflib
import importlib
import importlib.util  # gin reads it without importing it
import inspect
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from xretrieval import huge_pages
from xretrieval.command_line import BORROWS, COMMANDS, CONFIGURABLES, SEVERAL_PROCESSES, VERBS, WRITES, usage
from xretrieval.errors import Preempted, UserError
from xretrieval.flags import binding, parse

ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def _config_saved(workdir: str) -> Iterator[None]:
    """`config.gin` in the workdir: the bindings of this run, command line included. A run that is refused leaves the one before.

    Of several processes all must have the same bindings, and the first writes them.
    """
    from xretrieval import distributed

    path, text = pathlib.Path(workdir) / "config.gin", _config_text()
    distributed.check_same("configuration", text)
    if not distributed.first():
        yield
        return
    earlier = path.read_text() if path.exists() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); give another workdir") from error
    try:
        yield
    except UserError:
        if earlier is not None:
            path.write_text(earlier)
        raise


def _config_text() -> str:
    """The bindings of `train` as they are now."""
    import gin

    # Bindings of other verbs, which a process that ran those knows as well, are not this run's.
    parts = re.split(r"\n(?=# Parameters for )", gin.config_str())
    others = tuple(f"# Parameters for {name}:" for name in CONFIGURABLES if name not in VERBS["train"][2])
    return "\n".join(part for part in parts if not part.startswith(others))


def configure(verb: str, gin_files: list[str], settings: list[str], bindings: list[str]) -> None:
    """Registers the verb's configurables and parses its gin files and overrides, finalised."""
    import gin

    gin.clear_config()
    own = VERBS[verb][2]
    for name in own:
        module, function = CONFIGURABLES[name].split(":")
        try:
            gin.get_configurable(name)
        except (ValueError, KeyError):
            # A dataclass or function keeps its own name in Python and has a short one in gin.
            gin.external_configurable(getattr(importlib.import_module(module), function), name)
    gin.add_config_file_search_path(str(ROOT))
    overrides = [binding(item) for item in settings] + bindings
    for item in overrides:
        name = item.split("=")[0].split(".")[0].strip()
        if "." in item.split("=")[0] and name not in CONFIGURABLES:
            close = difflib.get_close_matches(name, [*own, *CONFIGURABLES], 1, 0.4)
            raise UserError(
                f"--gin.{item.split('=')[0]}: there is no {name}"
                + (f"; did you mean {close[0]}?" if close else f"; `xretrieval {verb}` has {', '.join(own)}")
            )
    if not gin_files:
        raise UserError(f"xretrieval {verb}: give --gin_file, as in: {VERBS[verb][1]}")
    files = [next((path for path in (pathlib.Path(file), ROOT / file) if path.exists()), None) for file in gin_files]
    if None in files:
        raise UserError(f"{gin_files[files.index(None)]}: no such gin file, here or in {ROOT}")
    macros = _macros([path for path in files if path])
    for item in overrides:
        name = item.split("=")[0].strip()
        if "." not in name and name not in macros:
            close = difflib.get_close_matches(name, macros, 1, 0.4)
            raise UserError(f"{name}: no such name in {', '.join(gin_files)}" + (f"; did you mean {close[0]}?" if close else ""))
    others = [name for name in CONFIGURABLES if name not in own]
    try:
        gin.parse_config_files_and_bindings(
            [str(path) for path in files], overrides, skip_unknown=others, finalize_config=True, print_includes_and_imports=False
        )
    except (ValueError, TypeError, SyntaxError, NameError, AttributeError, ImportError, RuntimeError) as error:
        raise UserError(_explain(str(error), own)) from error
    if own[0] in BORROWS:
        _borrow(own[0], BORROWS[own[0]])


def _borrow(borrower: str, lender: str) -> None:
    """Binds the parameters of one configurable as those of the same name of another are bound, where they have no binding of their own."""
    import gin

    with gin.unlock_config():
        for name in inspect.signature(gin.get_configurable(borrower)).parameters:
            with contextlib.suppress(ValueError):  # no binding
                value = gin.query_parameter(f"{lender}.{name}")
                try:
                    gin.query_parameter(f"{borrower}.{name}")
                except ValueError:
                    gin.bind_parameter(f"{borrower}.{name}", value)


def _macros(files: Sequence[pathlib.Path]) -> list[str]:
    """The names that gin files, and those they include, give values to."""
    found: list[str] = []
    for path in files:
        text = path.read_text()
        included = [ROOT / name for name in re.findall(r"^include ['\"](.+)['\"]", text, re.M)]
        found += [*re.findall(r"^(\w+) *=", text, re.M), *_macros(included)]
    return found


def _explain(message: str, own: tuple[str, ...]) -> str:
    """gin's message in one line, with the nearest name where a name is unknown."""
    line = " ".join(message.split())
    unknown = re.search(
        r"'(\w+)'.*doesn't have a parameter named '(\w+)'|No configurable matching '([\w.]+)'|parameter named '(\w+)'", line
    )
    if not unknown:
        return f"gin: {line}" + ("; a string needs quotes, or --set" if "Failed to parse token" in line else "")
    wanted = next(group for group in reversed(unknown.groups()) if group)
    names = {*own}
    for name in own:
        module, function = CONFIGURABLES[name].split(":")
        names |= inspect.signature(getattr(importlib.import_module(module), function)).parameters.keys()
    close = difflib.get_close_matches(wanted, sorted(names - {wanted}), 1, 0.5)
    return f"gin: {line}" + (f" Did you mean {close[0]!r}?" if close else "")


def run_verb(verb: str, gin_files: list[str], overrides: list[str], bindings: Sequence[str] = ()):
    """Configures a verb and runs its root function; `overrides` are as after `--set`, `bindings` as after `--gin.`."""
    configure(verb, gin_files, overrides, list(bindings))
    import gin

    root = gin.get_configurable(VERBS[verb][2][0])
    with _config_saved(_parameter("train.workdir")) if verb == "train" else contextlib.nullcontext():
        result = root()
    if verb == "train":
        from xretrieval import distributed

        if distributed.first():
            print(
                f"{result} steps done; config.gin, checkpoints, metrics.jsonl and TensorBoard events are in {_parameter('train.workdir')}"
            )
    elif verb in WRITES:
        print(f"wrote {_parameter(WRITES[verb])}")
    return result


def _parameter(name: str):
    """What a parameter is bound to, through a macro where there is one."""
    import gin

    value = gin.query_parameter(name)
    if isinstance(value, gin.config.ConfigurableReference):
        return gin.query_parameter(f"{value.scoped_selector.split('/')[0]}/macro.value")
    return value


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    program = argv is None
    if program and sys.argv[1:2] in (["demo"], ["train"]):
        huge_pages.use()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        verb = next((name for name in (" ".join(argv[:2]), " ".join(argv[:1])) if name in VERBS), None)
        if verb is None:
            return usage(argv)
        arguments = parse(verb, argv)
        if program and verb == "train":
            signal.signal(signal.SIGTERM, _give_way)  # until the run itself can finish a step: nothing is lost yet
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        if verb == "demo":
            from xretrieval.demo.run import run

            return run(arguments, run_verb) or 0
        if verb == "doctor":
            return _doctor(arguments)
        if verb in COMMANDS:
            from xretrieval import commands

            return getattr(commands, COMMANDS[verb])(arguments) or 0
        if verb == "plan":
            from xretrieval.plan import topology

            topology.use_compiler_alone()
        with _together(arguments) if verb in SEVERAL_PROCESSES else contextlib.nullcontext():
            result = run_verb(verb, arguments.gin_file, [], arguments.bindings)
        return result if verb == "plan" else 0
    except (UserError, OSError, Preempted, KeyboardInterrupt) as error:
        return _told(error)


def _give_way(number, frame) -> NoReturn:
    raise Preempted


def _told(error: BaseException) -> int:
    """Says in one line what ended a verb; the exit code that goes with it."""
    if isinstance(error, KeyboardInterrupt):
        print("xretrieval: stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    # What the system refuses (space, permission, a file gone) is the user's to mend, wherever it is met.
    end = "; mend that and run the same command: what was finished is kept" if isinstance(error, OSError) else ""
    print(f"xretrieval: {_without_gin(error)}{end}", file=sys.stderr)
    return os.EX_TEMPFAIL if isinstance(error, Preempted) else 2


def _without_gin(error: BaseException) -> str:
    """The message; gin adds to it in which of its configurables it rose."""
    return str(error).partition("\n  In call to configurable")[0]


def _together(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """The run that this process and perhaps others are part of."""
    from xretrieval import distributed

    names = ("coordinator", "num_processes", "process_id", "initialization_timeout", "heartbeat_timeout")
    return distributed.session(**{name: getattr(arguments, name) for name in names})


def _doctor(arguments: argparse.Namespace) -> int:
    """Checks what a run needs, on all its processes; 1 where something is wrong."""
    from xretrieval import doctor

    try:
        with _together(arguments):
            run = _run_file(arguments) if arguments.gin_file else None
            return doctor.examine(run, arguments.initialization_timeout, arguments.heartbeat_timeout)
    except UserError as error:
        print(f"WRONG  start: {_without_gin(error)}")
        return 1


def _run_file(arguments: argparse.Namespace):
    import gin

    from xretrieval.doctor import Run

    configure("doctor", arguments.gin_file, [], arguments.bindings)
    defaults = inspect.signature(gin.get_configurable("train")).parameters

    def bound(name: str):
        with contextlib.suppress(ValueError):  # no binding
            return _parameter(f"train.{name}")
        return defaults[name].default

    values = {name: bound(name) for name in ("workdir", "mesh_model", "mesh_replica", "batch_size", "microbatches", "keep_checkpoints")}
    configs = {"tower": "TowerConfig", "optimizer": "OptimizerConfig", "trainable": "TrainableConfig"}
    made = {field: gin.get_configurable(name)() for field, name in configs.items()}
    return Run(_config_text(), **values, **made, data=gin.get_configurable("training_data"))
