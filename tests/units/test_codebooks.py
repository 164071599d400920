"""Published codebooks: read from files of others, and refused where they are not of the encoder."""

import contextlib
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from xretrieval.errors import UserError
from xretrieval.units import codebooks, kmeans
from xretrieval.units.encoders import encoder as encoders
from xretrieval.units.encoders.pretrained import import_encoder

FIXTURES = pathlib.Path(__file__).parents[1] / "data/parity"


@pytest.mark.parametrize("name", ["flat_l2", "flat_ip_unit"])
def test_a_flat_index_of_faiss_and_the_same_in_other_files(tmp_path, name):
    wanted = np.load(FIXTURES / f"codebooks/{name}.npy")
    safetensors.numpy.save_file({"centroids": wanted}, tmp_path / "km.safetensors")
    np.save(tmp_path / "double.npy", wanted.astype(np.float64))
    for path in (
        *(FIXTURES / f"codebooks/{name}{end}" for end in (".npy", ".faissindex")),
        tmp_path / "km.safetensors",
        tmp_path / "double.npy",
    ):
        found = codebooks.read_codebook(path)
        assert found.dtype == np.float32
        assert (found == wanted).all()


def test_what_is_no_codebook_is_refused(tmp_path):
    def refused(name, message, write=None):
        path = tmp_path / name
        if write is not None:
            write(path)
        with pytest.raises(UserError, match=message) as raised:
            codebooks.read_codebook(path)
        assert str(path) in str(raised.value)

    rows = np.load(FIXTURES / "codebooks/flat_l2.npy")
    refused("km.bin", "a pickle may run any program", lambda p: p.write_bytes(b"\x80\x04"))
    refused("kmeans", "a pickle may run any program", lambda p: p.write_bytes(b"\x80\x04"))
    refused("none.npy", "No such file")
    refused("object.npy", "a pickle may run any program", lambda p: np.save(p, np.array([{}], object), allow_pickle=True))
    refused("cut.npy", "no whole array", lambda p: p.write_bytes((FIXTURES / "codebooks/flat_l2.npy").read_bytes()[:-3]))
    refused("more.npy", "143 bytes behind it", lambda p: p.write_bytes((FIXTURES / "codebooks/flat_l2.npy").read_bytes() + b"abc"))
    refused("large.npy", "not finite", lambda p: np.save(p, np.array([[1e300, 1.0]])))
    refused("flat.npy", r"float32 \[35\] is no codebook", lambda p: np.save(p, rows.ravel()))
    refused("whole.npy", "int64 .* is no codebook", lambda p: np.save(p, np.arange(6).reshape(2, 3)))
    refused("nan.npy", "not finite", lambda p: np.save(p, np.where(rows == rows[2, 2], np.nan, rows)))
    refused("twice.npy", "1 centroids repeat another", lambda p: np.save(p, rows[[0, 1, 1]]))
    refused("ivf.index", "first bytes are 'IwFl'", lambda p: shutil.copyfile(FIXTURES / "codebooks/ivf.faissindex", p))
    refused("ip.index", "differ in norm", lambda p: shutil.copyfile(FIXTURES / "codebooks/flat_ip.faissindex", p))
    refused("empty.index", "neither", lambda p: p.write_bytes(b""))
    two = {"a": rows, "b": rows}
    refused("two.safetensors", "holds 2 tensors", lambda p: safetensors.numpy.save_file(two, p))


def test_every_cut_and_changed_header_of_an_index_is_refused(tmp_path):
    content = (FIXTURES / "codebooks/flat_l2.faissindex").read_bytes()
    path = tmp_path / "km.index"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            codebooks.read_codebook(path)
    for place in (*range(0, 16), *range(37, 45)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(bytes(changed))
            with pytest.raises(UserError):
                codebooks.read_codebook(path)


def _npy(header):
    content = header.encode()
    content += b" " * (-(11 + len(content)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 100000)}"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4)}"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1)"),
        _npy("{'descr': ('<f4', (16,)), 'fortran_order': False, 'shape': (1, 1)}"),
        _npy("__import__('os').abort()"),
        _npy("(" * 9_000),
        b"\x93NUMPY\x03\x00",
    ],
)
def test_a_header_that_lies_allocates_and_runs_nothing(tmp_path, content):
    (tmp_path / "km.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"km\.npy: "):
        codebooks.read_codebook(tmp_path / "km.npy")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of Python, about the text in a header
@pytest.mark.parametrize("name", ["flat_l2.npy", "flat_l2.faissindex", "flat_ip_unit.faissindex"])
def test_mutated_files_are_a_codebook_or_one_line(tmp_path, name):
    content = (FIXTURES / "codebooks" / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(600):
        mutated = bytearray(content)
        for place in rng.integers(0, 160, rng.integers(1, 5)):
            mutated[place] = rng.integers(256)
        (tmp_path / name).write_bytes(bytes(mutated[: rng.integers(len(content) // 2, 2 * len(content))]))
        with contextlib.suppress(UserError):
            assert np.isfinite(codebooks.read_codebook(tmp_path / name)).all()


def test_columns_first_is_the_same_codebook(tmp_path):
    wanted = np.load(FIXTURES / "codebooks/flat_l2.npy")
    np.save(tmp_path / "km.npy", np.asfortranarray(wanted))
    assert (codebooks.read_codebook(tmp_path / "km.npy") == wanted).all()


@pytest.fixture(scope="module")
def hubert():
    return import_encoder(FIXTURES / "encoders/hubert_base", 2).encoder


def test_the_encoder_and_the_layer_must_be_those_it_was_made_for(hubert):
    rows = np.zeros((4, hubert.config.width), np.float32)
    for made_for in ("hubert_base", "somebody/HuBERT_base", hubert.fingerprint):
        codebooks.check_declared("km.npy", rows, hubert, made_for, 2)
    with pytest.raises(UserError, match=r"km\.npy: made for utter-project/mhubert-147, the encoder is hubert_base"):
        codebooks.check_declared("km.npy", rows, hubert, "utter-project/mhubert-147", 2)
    with pytest.raises(UserError, match="made for layer 1, the encoder taps layer 2"):
        codebooks.check_declared("km.npy", rows, hubert, "hubert_base", 1)
    with pytest.raises(UserError, match=f"centroids 3 wide, the encoder's features are {hubert.config.width}"):
        codebooks.check_declared("km.npy", rows[:, :3], hubert, "hubert_base", 2)


def sounds(count=24):
    """Glides between tones over noise: unlike enough for frames to have clusters."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        t = np.arange(32_000) / 16_000
        pitch = np.interp(t, np.linspace(0, 2, 7), rng.uniform(100, 3_000, 7))
        made.append(
            (np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) * rng.uniform(0.1, 0.5) + 0.02 * rng.normal(size=t.size)).astype(np.float32)
        )
    return made


def test_explained_is_one_less_the_share_of_the_variance_that_is_left():
    rng = np.random.default_rng(0)
    x, codebook = rng.normal(size=(200, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    nearest = np.square(x[:, None].astype(np.float64) - codebook[None]).sum(-1).min(1).sum()
    assert codebooks.explained(x, codebook) == pytest.approx(1 - nearest / (x.astype(np.float64).var(0).sum() * 200), rel=1e-6)


def test_another_layers_or_iterations_codebook_is_caught_by_measurement(hubert):
    """The name may be right all the same: the index published beside mHuBERT-147 is of an earlier iteration."""
    features = np.concatenate(hubert.features(sounds()))
    right, _ = kmeans.fit(features, 96, 30, seed=0)
    found, wanted = codebooks.check_measured("km.npy", right, features)
    assert found > 0.9 * wanted
    other_layer = encoders.Encoder(*_tapped(1))
    other_iteration = encoders.Encoder(hubert.config, encoders.init(hubert.config, 1))
    for other in (other_layer, other_iteration):
        wrong, _ = kmeans.fit(np.concatenate(other.features(sounds())), 96, 30, seed=0)
        with pytest.raises(UserError, match="another encoder, layer or training iteration"):
            codebooks.check_measured("km.npy", wrong, features)
    with pytest.raises(UserError, match="too few to check it"):
        codebooks.check_measured("km.npy", right, features[:500])
    with pytest.raises(UserError, match=r"km\.npy: the recordings cannot check it"):
        codebooks.check_measured("km.npy", right, np.ones_like(features))


def test_half_of_what_few_fitted_clusters_explain_is_enough():
    rng = np.random.default_rng(0)
    features = (3 * rng.normal(size=(40, 12))[rng.integers(40, size=3_000)] + rng.normal(size=(3_000, 12))).astype(np.float32)
    right, _ = kmeans.fit(features, 64, 20, seed=0)
    seen = set()
    for shrunk in np.linspace(0, 1, 21, dtype=np.float32):
        codebook = features.mean(0) + shrunk * (right - features.mean(0))
        try:
            found, wanted = codebooks.check_measured("km.npy", codebook, features)
            assert found >= 0.5 * wanted
            seen.add(round(found / wanted, 1))
        except UserError:
            assert codebooks.explained(features, codebook) < 0.55 * codebooks.explained(features, right)
            seen.add("refused")
    assert {"refused", 0.6, 1.0} <= seen


def _tapped(layer):
    found = import_encoder(FIXTURES / "encoders/hubert_base", layer).encoder
    return found.config, found.params
