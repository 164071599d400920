"""Where FLEURS keeps its sound: in a folder, in an archive, or within parquet files. What is not a file yet becomes one."""

import contextlib
import functools
import gzip
import io
import os
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

from xretrieval.corpora.readers.findings import Findings
from xretrieval.errors import UserError

# A recording takes some hundred kilobytes, up to 5 MB.
_ROWS = 8
_CHUNK = 2**20


class Recording(NamedTuple):
    """One line of FLEURS.

    Attributes:
      sentence: its id.
      text: the transcript.
      file: name of the sound file, without a folder.
      place: file and line, or row.
      save: gives the path of the sound file, which it writes where it is none yet; None where there is no sound.
    """

    sentence: str
    text: str
    file: str
    place: str
    save: Callable[[], str | None]


def locator(
    folder: pathlib.Path, split: str, files: Sequence[str], audio_dir: str | None, findings: Findings
) -> Callable[[str], str | None]:
    """The path of a sound file by its name, or None; unpacks the archive first where there is no folder of them.

    Args:
      folder: of the language.
      split: train, dev or test.
      files: names that the table has.
      audio_dir: where an archive is unpacked.
    """
    unpacked = next((path for path in (folder / "audio" / split, folder / split) if path.is_dir()), None)
    archive = folder / "audio" / f"{split}.tar.gz"
    if unpacked is not None:
        others = len(set(os.listdir(unpacked)) - set(files))
    elif archive.is_file():
        unpacked, others = pathlib.Path(_needed(audio_dir, archive)), _unpack(archive, set(files), _needed(audio_dir, archive))
    else:
        raise UserError(f"{folder}: has neither audio/{split}/ nor audio/{split}.tar.gz; copy one of them there from FLEURS")
    if others:
        findings.leave_out(f"recordings of {folder.name} that {split}.tsv does not name", others)

    def locate(file: str) -> str | None:
        path = os.path.join(unpacked, file)
        return path if _is_name(file) and os.path.isfile(path) else None

    return locate


def from_parquet(path: pathlib.Path, audio_dir: str | None, text: str) -> Iterator[Recording]:
    """The rows of a file with the columns `id`, `audio` (bytes and path) and the transcripts."""
    out = _needed(audio_dir, path)
    for place, row in _rows(path, ("id", "audio", text)):
        audio = row["audio"] or {}
        file = os.path.basename(audio.get("path") or "") or f"{path.stem}-{place.rsplit(' ', 1)[1]}.wav"
        yield Recording(str(row["id"]), row[text] or "", file, place, functools.partial(_save, out, file, audio.get("bytes")))


def texts(path: pathlib.Path, text: str) -> Iterator[tuple[str, str, str]]:
    """Sentence id, transcript and place of each row, without its sound."""
    return ((str(row["id"]), row[text] or "", place) for place, row in _rows(path, ("id", text)))


def _rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise UserError(f"{path}: no column {', '.join(sorted(missing))}; its columns are {', '.join(file.schema_arrow.names)}")
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged, or no parquet file ({str(error).splitlines()[0]}); copy it again, whole") from error


def _needed(audio_dir: str | None, path: pathlib.Path) -> str:
    if audio_dir is None:
        raise UserError(f"{path}: its sound has to be written to files; give a folder for them (audio_dir)")
    return audio_dir


def _is_name(file: str) -> bool:
    """Whether it is the name of a file and of nothing outside its folder."""
    return file not in ("", ".", "..") and os.path.basename(file) == file and "\0" not in file


def _unpack(archive: pathlib.Path, files: set[str], out: str) -> int:
    """Writes the files of an archive that the table names; returns how many others it holds."""
    if all(os.path.isfile(os.path.join(out, file)) for file in files if _is_name(file)):
        return 0
    others, taken = 0, list[str]()
    try:
        # gzip, and not tarfile's own reading of it, which does not check the sum at the end.
        with gzip.open(archive) as packed:
            with tarfile.open(fileobj=packed, mode="r|") as members:
                for member in members:
                    file = os.path.basename(member.name)
                    if not member.isfile():
                        continue
                    if file not in files or not _is_name(file):
                        others += 1
                        continue
                    content = members.extractfile(member)
                    assert content is not None
                    taken.append(_write_once(out, file, content, member.size))
            while packed.read(_CHUNK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        # Which of its files are damaged cannot be known.
        for path in taken:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise UserError(f"{archive}: damaged, or cannot be read ({error}); copy it again, whole") from error
    return others


def _save(out: str, file: str, content: bytes | None) -> str | None:
    if not content or not _is_name(file):
        return None
    return _write_once(out, file, io.BytesIO(content), len(content))


def _write_once(out: str, file: str, content: IO[bytes], size: int) -> str:
    """Writes a file, whole or not at all, unless it is there."""
    path = os.path.join(out, file)
    try:
        if os.path.isfile(path):
            if os.path.getsize(path) != size:
                raise UserError(f"{path}: is there with other content; give another folder, or delete it")
            return path
        os.makedirs(out, exist_ok=True)
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as opened:
                shutil.copyfileobj(content, opened)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or give another folder") from error
    return path
