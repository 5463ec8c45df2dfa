"""The header of a GGUF file: equal to what the package `gguf` reads, and never trusted."""

import struct

import gguf
import numpy as np
import pytest

from trimode.checkpoints.gguf_header import read_header
from trimode.errors import CheckpointError

UINT8, UINT32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9
F32, Q8_0 = 0, 8


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def texts(key, *values):
    return pair(key, ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values)))


def described(name, shape, kind=F32, offset=0):
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


def write(path, pairs=(ARCHITECTURE,), tensors=(), data=256, *, version=3, counts=None):
    """A file of given pairs and descriptions, and `data` bytes for the tensors."""
    counts = counts or (len(tensors), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *tensors))
    path.write_bytes(header + bytes(-len(header) % 32 + data if data else 0))
    return path


def refusal(path, ask=lambda header: header.tensors()):
    with pytest.raises(CheckpointError) as error:
        ask(read_header(path))
    return str(error.value)


def test_a_header_is_what_the_package_reads(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"a.{name}", 100)
    for name, value in (("float32", 0.1), ("float64", 0.1), ("bool", True), ("string", "é")):
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    for name, value in (("numbers", [1, -2]), ("floats", [0.5]), ("flags", [True, False])):
        writer.add_array(f"a.{name}", value)
    writer.add_array("a.texts", ["", "a", "ĠĠ\n"])
    writer.add_custom_alignment(128)
    generator = np.random.default_rng(0)
    writer.add_tensor("one", generator.random(7, dtype=np.float32))
    writer.add_tensor("two", generator.random((3, 5)).astype(np.float16))
    blocks = gguf.quantize(
        generator.random((4, 64), dtype=np.float32), gguf.GGMLQuantizationType(Q8_0)
    )
    writer.add_tensor("three", blocks, raw_dtype=gguf.GGMLQuantizationType(Q8_0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_header(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert key in ours
            assert ours.get(key) == field.contents(), key
    tensors = {tensor.name: tensor for tensor in ours.tensors()}
    assert list(tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert (found.kind.name, found.start) == (tensor.tensor_type.name, tensor.data_offset)
        assert bytes(found.file.tensor(found.start, found.size)) == tensor.data.tobytes()


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(tmp_path, version):
    path = write(tmp_path / "m.gguf", tensors=[described("a", (8, 2))], version=version)
    (tensor,) = read_header(path).tensors()
    assert (tensor.name, tensor.shape, tensor.size) == ("a", (2, 8), 64)


def test_a_key_costs_nothing_of_the_others(tmp_path):
    """A text that is not UTF-8 is found only by who asks for it."""
    pairs = [texts("tokenizer.ggml.tokens", "a", b"\xff"), ARCHITECTURE]
    header = read_header(write(tmp_path / "m.gguf", pairs))
    assert header.get("general.architecture") == "llama"
    assert header.get("general.name", "unnamed") == "unnamed"
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.tokens: not readable .*utf-8"):
        header.get("tokenizer.ggml.tokens")


def test_a_key_twice_is_named(tmp_path):
    message = refusal(write(tmp_path / "m.gguf", [ARCHITECTURE, ARCHITECTURE]))
    assert "general.architecture: is there twice; each key once" in message


def test_a_tensor_twice_is_named(tmp_path):
    tensors = [described("a", (8,)), described("a", (8,), offset=32)]
    assert "a: is there twice; each tensor once" in refusal(
        write(tmp_path / "m.gguf", tensors=tensors)
    )


@pytest.mark.parametrize("value", [0, 3, 48])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path, value):
    key = pair("general.alignment", UINT32, struct.pack("<I", value))
    message = refusal(write(tmp_path / "m.gguf", [ARCHITECTURE, key]))
    assert f"general.alignment: {value}; must be a power of two" in message


def test_an_alignment_of_another_type_is_refused(tmp_path):
    key = pair("general.alignment", STRING, text("32"))
    message = refusal(write(tmp_path / "m.gguf", [ARCHITECTURE, key]))
    assert "general.alignment: '32'; must be a power of two" in message


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([described("a", (64, 2))], "truncated or damaged (a ends at byte"),
        ([described("a", (8,), offset=2**64 - 32)], "a ends at byte 18446744073709551"),
        ([described("a", (2**63, 2**63, 2**63))], "truncated or damaged (a ends at byte"),
        ([described("a", (8,), offset=8)], "a begins at 8, no multiple of 32"),
        ([described("a", (16,)), described("b", (8,), offset=32)], "a and b overlap"),
        ([described("b", (8,), offset=32), described("a", (16,))], "a and b overlap"),
        ([described("a", (40, 1), Q8_0)], "a: rows of 40; rows of whole blocks of 32"),
        ([described("a", (8,), 99)], "a: type 99; supported: F32, F16, Q4_0"),
        ([described("a", (8,), 9)], "a: type Q8_1; supported: F32, F16, Q4_0"),
        ([described("a", (1,) * 5)], "a tensor of 5 dimensions"),
        ([described(b"\xff", (1,))], "can't decode byte 0xff"),
    ],
)  # fmt: skip
def test_a_tensor_that_cannot_be_is_refused(tmp_path, tensors, words):
    assert words in refusal(write(tmp_path / "m.gguf", tensors=tensors))


def test_an_empty_tensor_overlaps_nothing(tmp_path):
    tensors = [described("a", (8,)), described("b", (0, 4)), described("c", ())]
    path = write(tmp_path / "m.gguf", tensors=[*tensors[:2], described("c", (), offset=32)])
    assert [tensor.size for tensor in read_header(path).tensors()] == [32, 0, 4]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([pair("a", 13, b"")], "a value of unknown type 13"),
        ([pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1))], "a value of unknown type 9"),
        ([pair("a", ARRAY, struct.pack("<IQ", UINT8, 2**62))], "but its header goes on"),
        ([pair("a", ARRAY, struct.pack("<IQ", STRING, 2**62))], "but its header goes on"),
        ([pair("a", ARRAY, struct.pack("<IQQ", STRING, 2, 2**64 - 1))], "but its header goes on"),
        ([pair("a", STRING, struct.pack("<Q", 2**64 - 1))], "but its header goes on"),
        ([struct.pack("<Q", 2**63)], "but its header goes on"),
        ([pair(b"\xff", UINT8, b"\0")], "can't decode byte 0xff"),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path, pairs, words):
    path = write(tmp_path / "m.gguf", pairs)
    assert words in refusal(path)
    assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize("counts", [(2**64 - 1, 1), (0, 2**64 - 1)])
def test_counts_beyond_the_file_are_refused_at_once(tmp_path, counts):
    assert "but its header goes on" in refusal(write(tmp_path / "m.gguf", counts=counts, data=0))


def test_a_truth_value_is_0_or_1(tmp_path):
    path = write(tmp_path / "m.gguf", [pair("a", BOOL, b"\x02"), pair("b", BOOL, b"\x01")])
    assert read_header(path).get("b") is True
    assert "a: not readable (a truth value of 2)" in refusal(path, lambda header: header.get("a"))


def test_every_cut_of_a_header_is_refused(tmp_path):
    path = write(
        tmp_path / "m.gguf",
        [ARCHITECTURE, texts("t", "one", "two"), pair("n", UINT32, bytes(4))],
        [described("a", (8, 2), offset=0)],
        data=64,
    )
    whole = path.read_bytes()
    assert read_header(path).tensors()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert "m.gguf" in refusal(path)
