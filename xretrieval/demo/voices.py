"""Speech from espeak-ng, through the library and voices in the `espeakng-loader` wheel: no system package."""

import _ctypes
import atexit
import ctypes
import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soxr

from xretrieval.demo.keyed import draw
from xretrieval.errors import UserError

SAMPLING_RATE = 16_000
ESPEAK_RATE = 22_050

# Variants that change formants, pitch and voicing and stay intelligible: no whisper, no robots. The held-out ones are never heard in training.
TRAINING_VARIANTS = ("m1", "m2", "m3", "m4", "m7", "max", "michel", "f1", "f2", "f3", "f5", "Annie")
HELD_OUT_VARIANTS = ("m6", "ed", "paul", "f4", "linda", "steph")
_WORDS_A_MINUTE = (140, 210)
_PITCH = (35, 65)  # espeak-ng's scale, 50 is the variant's own

# speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS, _DONT_EXIT, _CHARS_UTF8, _POS_CHARACTER, _RATE, _PITCH_PARAMETER = 2, 0x8000, 1, 1, 1, 3
_LONGEST_DATA_PATH = 159  # bytes; beyond, espeak-ng looks where it was built
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
PHONEMES, IPA = 1, 2  # options: phoneme events, with IPA symbols for names
_END_OF_EVENTS, _PHONEME = 0, 7


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; `name` is the union's longest member, without an end where it is full."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_byte * 8),
    )


class Phoneme(NamedTuple):
    """An event: a phoneme begins at this sample, at `ESPEAK_RATE`. A name of more than 8 bytes is cut, and ends in U+FFFD if within a character."""

    sample: int
    name: str


@dataclasses.dataclass(frozen=True)
class Voice:
    """How one utterance is spoken: voice of the language, variant, pitch (0 to 99), words a minute."""

    language: str
    variant: str
    pitch: int
    words_a_minute: int


def draw_voice(espeak_voice: str, variants: tuple[str, ...], *key: object) -> Voice:
    """A voice that depends on the key alone."""
    number, which = divmod(draw("voice", *key), len(variants))
    number, pitch = divmod(number, _PITCH[1] - _PITCH[0] + 1)
    rate = number % (_WORDS_A_MINUTE[1] - _WORDS_A_MINUTE[0] + 1)
    return Voice(espeak_voice, variants[which], _PITCH[0] + pitch, _WORDS_A_MINUTE[0] + rate)


def espeak_paths() -> tuple[str, str]:
    """Paths of espeak-ng's library and of its data.

    Raises:
      UserError: the wheel is not installed or has no library for this machine.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError("espeak-ng is not installed; it voices the demo corpus: pip install -e '.[demo]' in the repository") from error
    library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    for path in (library, data):
        if not os.path.exists(path):
            raise UserError(
                f"{path}: missing from the espeakng-loader package; install it again: pip install --force-reinstall espeakng-loader"
            )
    return str(library), _shortened(str(data))


@functools.cache
def _shortened(data_path: str) -> str:
    if len(os.fsencode(data_path)) <= _LONGEST_DATA_PATH:
        return data_path
    folder = tempfile.mkdtemp(prefix="espeak-ng-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = os.path.join(folder, "data")
    os.symlink(data_path, link)
    return link


@functools.cache
def _voice_file(data_path: str, name: str) -> str:
    # Named with its folder ("gmw/de"), a voice is found without reading all 200 voice files, which takes longer than to speak. espeak-ng
    # looks names up in lower case, so that "en-us" (file en-US) is only found the long way.
    folder = os.path.join(data_path, "lang")
    families = [family for family in sorted(os.listdir(folder)) if os.path.isfile(os.path.join(folder, family, name))]
    return f"{families[0]}/{name}" if families else name


def speak(text: str, voice: Voice) -> np.ndarray:
    """Speaks a text; the same sound for the same arguments, whatever was spoken before.

    Returns:
      int16 [T] at 16 kHz.

    Raises:
      UserError: espeak-ng is not installed, or does not know the voice.
    """
    return resampled(synthesise(text, voice)[0])


def resampled(sound_T: np.ndarray) -> np.ndarray:
    """int16 samples at `ESPEAK_RATE` to int16 at 16 kHz."""
    # As float: integers soxr would dither, with a noise of its own.
    sound_T = soxr.resample(sound_T.astype(np.float32), ESPEAK_RATE, SAMPLING_RATE, quality="HQ")
    return np.clip(np.rint(sound_T), -32768, 32767).astype(np.int16)


def synthesise(text: str, voice: Voice, options: int = 0) -> tuple[np.ndarray, list[Phoneme]]:
    """As `speak`, at `ESPEAK_RATE`.

    Args:
      text: what to say.
      voice: how.
      options: 0, `PHONEMES` or `PHONEMES | IPA`; the samples are the same.

    Returns:
      int16 [T], and the phoneme events in their order; none without `PHONEMES`.
    """
    # espeak-ng keeps phase, gain and noise of one utterance for the next, even over espeak_Terminate, and seeds its noise by the clock.
    # Loading the library afresh (0.6 ms) is the one reset that leaves nothing.
    library_path, data_path = espeak_paths()
    chunks: list[bytes] = []
    phonemes: list[Phoneme] = []

    def receive(samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        if options and events:
            phonemes.extend(_phonemes(events))
        return 0

    callback = _CALLBACK(receive)
    library = _load_afresh(library_path)
    try:
        rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_path), _DONT_EXIT | options)
        if rate != ESPEAK_RATE:
            raise UserError(
                f"{data_path}: espeak-ng cannot read its data (status {rate}); install it again: pip install --force-reinstall espeakng-loader"
            )
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(callback)
        name = f"{_voice_file(data_path, voice.language)}+{voice.variant}"
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {name!r}; this release of espeakng-loader lacks it")
        library.espeak_SetParameter(_RATE, voice.words_a_minute, 0)
        library.espeak_SetParameter(_PITCH_PARAMETER, voice.pitch, 0)
        encoded = text.encode() + b"\0"
        status = library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise RuntimeError(f"espeak_Synth: status {status} for {text!r}")
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    sound_T = np.frombuffer(b"".join(chunks), np.int16)
    if not sound_T.any():
        raise UserError(f"espeak-ng's voice {voice.language!r} says nothing for {text!r}; leave this language out")
    return sound_T, phonemes


def _phonemes(address: int) -> Iterator[Phoneme]:
    """The phoneme events of an array in espeak-ng's memory."""
    while (event := _Event.from_address(address)).type != _END_OF_EVENTS:
        if event.type == _PHONEME:
            yield Phoneme(event.sample, bytes(event.name).partition(b"\0")[0].decode(errors="replace"))
        address += ctypes.sizeof(_Event)


def _load_afresh(path: str) -> ctypes.CDLL:
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    except OSError:  # not loaded, as it must be
        return ctypes.CDLL(path)
    raise UserError(f"{path}: already in use in this process, so that speech would depend on what was spoken before; give num_workers=2")
