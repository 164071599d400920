"""Our reading and writing of safetensors against the library's, and every way in which a file can be wrong."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.tensors import Blocks

RNG = np.random.default_rng(0)
ARRAYS = {
    "a": RNG.standard_normal((3, 5)).astype(jnp.bfloat16),
    "b": RNG.standard_normal((7,)).astype(np.float32),
    "c": RNG.standard_normal((2, 3, 4)).astype(np.float16),
    "d": np.array(3.5, np.float32),
    "e": np.zeros((0, 4), np.float32),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(
            found[name].view(np.uint8) if found[name].ndim else found[name], array.view(np.uint8) if array.ndim else array
        )


def test_the_library_reads_what_we_write(tmp_path):
    tensors.write(tmp_path / "t.safetensors", ARRAYS)
    same(safetensors.numpy.load_file(tmp_path / "t.safetensors"), ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_we_read_what_the_library_writes(tmp_path):
    path = tmp_path / "t.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, {"format": "pt"})
    same({name: tensors.read(path, name, entry) for name, entry in tensors.header(path).items()}, ARRAYS)
    same(tensors.mapped(path), ARRAYS)
    np.testing.assert_array_equal(tensors.read(path, "c", tensors.header(path)["c"], first=1, rows=5), ARRAYS["c"][1:])


def test_what_is_made_while_it_is_written(tmp_path):
    table = RNG.standard_normal((10, 4)).astype(jnp.bfloat16)
    blocks = Blocks(table.dtype, table.shape, lambda: (table[i : i + 3] for i in range(0, 10, 3)))
    turned = Blocks(table.dtype, (2, 4, 5), lambda: (half.T for half in (table[:5], table[5:])))
    tensors.write(tmp_path / "t", {"table": blocks, "turned": turned})
    found = safetensors.numpy.load_file(tmp_path / "t")
    np.testing.assert_array_equal(found["table"], table)
    np.testing.assert_array_equal(found["turned"], np.stack([table[:5].T, table[5:].T]))


def test_parts_that_do_not_fill_the_shape_are_a_bug(tmp_path):
    with pytest.raises(RuntimeError, match="short: wrote up to byte 16, its shape ends at 24"):
        tensors.write(tmp_path / "t", {"short": Blocks(np.dtype(np.float32), (2, 3), lambda: [np.zeros(4, np.float32)])})
    assert not list(tmp_path.iterdir())


def test_every_tensor_is_aligned_to_its_elements(tmp_path):
    tensors.write(tmp_path / "t", {"a": np.zeros(3, np.float16), "b": np.zeros(3, np.float32), "c": np.zeros(1, jnp.bfloat16)})
    for name, entry in tensors.header(tmp_path / "t").items():
        assert entry.begin % tensors.DTYPES[entry.dtype].itemsize == 0, name
    assert min(entry.begin for entry in tensors.header(tmp_path / "t").values()) % 64 == 0


def test_a_mapped_array_is_read_only(tmp_path):
    tensors.write(tmp_path / "t", ARRAYS)
    with pytest.raises(ValueError, match="read-only"):
        tensors.mapped(tmp_path / "t")["b"][0] = 1


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"none/t: cannot be written \(No such file"):
        tensors.write(tmp_path / "none/t", ARRAYS)


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, record, data=b""):
    head = record if isinstance(record, bytes) else json.dumps(record).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.mark.parametrize(
    "record,size,message",
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "tensor b begins at byte .* the one before ends at"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "tensor b begins at byte"),
        ({"a": entry(4, 12, [2])}, 12, "tensor a begins at byte"),
        ({"a": entry(0, 8, [2]), "b": entry(8, 16, [2])}, 12, "truncated in tensor b"),
        ({"a": entry(0, 8, [2])}, 9, "1 bytes follow its last tensor"),
        ({"a": entry(0, 8, [3])}, 8, r"tensor a, F32 \[3\], has 8 bytes"),
        ({"a": entry(0, 8, [2**40, 2**40])}, 8, "tensor a, F32"),
        ({"a": entry(8, 0, [2])}, 8, "tensor a has no whole dtype, shape and data_offsets"),
        ({"a": entry(0, 8, [-2])}, 8, "tensor a has no whole"),
        ({"a": entry(0, 8, 2)}, 8, "tensor a has no whole"),
        ({"a": entry(0, 8, [2.0])}, 8, "tensor a has no whole"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "tensor a has no whole"),
        ({"a": 3}, 8, "tensor a has no whole"),
        ({"a": entry(0, 8, [2], "F33")}, 8, "not a valid safetensors file"),
        ([1, 2], 0, "its header is damaged"),
        (b"{", 0, "its header is damaged"),
        (b"\xff\xff", 0, "its header is damaged"),
        (b"[" * 100_000, 0, "its header is damaged"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, record, size, message):
    write(tmp_path / "t", record, bytes(size))
    with pytest.raises(UserError, match=message) as error:
        tensors.header(tmp_path / "t")
    assert str(tmp_path / "t") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_a_length_that_the_file_does_not_have_is_refused(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match="t: no whole safetensors file"):
        tensors.header(tmp_path / "t")


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="t: cannot be read"):
        tensors.header(tmp_path / "t")


def test_what_is_not_of_parameters_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "t"
    safetensors.numpy.save_file({"q": np.zeros(3, np.int8), "w": np.ones(3, np.float32)}, path)
    entries = tensors.header(path)
    np.testing.assert_array_equal(tensors.read(path, "w", entries["w"]), np.ones(3))
    for reading in (lambda: tensors.read(path, "q", entries["q"]), lambda: tensors.mapped(path)):
        with pytest.raises(UserError, match="t: tensor q is I8; .* not quantised"):
            reading()


def test_a_file_that_shrank_since_its_header_was_read(tmp_path):
    path = tmp_path / "t"
    tensors.write(path, ARRAYS)
    entries = tensors.header(path)
    path.write_bytes(path.read_bytes()[:-2])
    last = max(entries, key=lambda name: entries[name].end)
    with pytest.raises(UserError, match=f"truncated in tensor {last}"):
        tensors.read(path, last, entries[last])
