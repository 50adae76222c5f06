"""`save` and `load`: exact round trips, and every damage found, named and survived."""

import base64
import contextlib
import errno
import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
import textwrap
import zlib
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import funcnet as fn
from funcnet import _safetensors, _tensors, store
from funcnet.errors import DTypeError, FileFormatError, StructureError, ValueRangeError

DTYPES = [*_safetensors.CODES.values(), *_tensors.AS_BYTES]
WIDE = ["int64", "uint64", "float64", "complex128"]  # with x64 off, NumPy only
IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def random_array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Every bit pattern that the type has: NaNs with their payload, infinities, negative zeros."""
    dtype_ = jnp.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype in ("bool", "int2", "int4", "uint2", "uint4", "float4_e2m1fn"):  # fewer than 8 bits
        return rng.integers(0, 2, shape).astype(dtype_)
    return rng.integers(0, 256, (*shape, dtype_.itemsize), np.uint8).view(dtype_)[..., 0]


arrays = st.builds(
    random_array,
    st.sampled_from(DTYPES),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
    st.integers(0, 99),
)
numbers = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.complex_numbers(),
)
keys = st.builds(
    lambda impl, shape, seed: jax.random.wrap_key_data(
        jnp.asarray(random_array("uint32", (*shape, 2 if impl == "threefry2x32" else 4), seed)), impl=impl
    ),
    st.sampled_from(IMPLEMENTATIONS),
    hnp.array_shapes(min_dims=0, max_dims=2, max_side=2),
    st.integers(0, 99),
)
names = st.one_of(
    st.sampled_from(["w", "b", "", ".", "~", "a.b", "~1", "__metadata__", "0" * 64, "é\0\n"]), st.text()
)
trees = st.recursive(
    st.one_of(arrays, numbers, keys, st.none()),
    lambda child: st.one_of(
        st.lists(child, max_size=3),
        st.lists(child, max_size=3).map(tuple),
        st.dictionaries(names, child, max_size=3),
    ),
    max_leaves=8,
)


def bits(leaf: Any) -> tuple[Any, ...]:
    """What must survive: the kind of leaf, its dtype and shape, and every bit."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf)), *bits(jax.random.key_data(leaf))
    if isinstance(leaf, jax.Array | np.ndarray):
        return "array", leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()
    return type(leaf), repr(leaf)


def assert_same(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert [bits(x) for x in jax.tree.leaves(actual)] == [bits(x) for x in jax.tree.leaves(expected)]


def small_tree() -> Any:
    return {
        "w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
        "layers": [(jnp.ones(2, jnp.float32), None), {}],
        "key": jax.random.key(7),
        "mask": jnp.array([True, False]),
        "nibbles": jnp.arange(3).astype(jnp.int4),
        "step": 3,
    }


# --- round trips ------------------------------------------------------------------------------------------


@pytest.mark.as_users
@quick
@given(trees)
def test_round_trip_is_exact_for_every_tree_and_dtype(tmp_path, tree):
    path = tmp_path / "tree.safetensors"
    fn.save(path, tree)
    assert_same(fn.load(path, like=tree), tree)  # NumPy in `like`, so 64 bits in both modes


@pytest.mark.as_users
@quick
@given(trees)
def test_structure_comes_from_the_file(tmp_path, tree):
    path = tmp_path / "tree.safetensors"
    tree = jax.tree.map(
        lambda x: jnp.zeros(x.shape) if isinstance(x, np.ndarray) and x.dtype.name in WIDE else x, tree
    )
    fn.save(path, tree)
    loaded = fn.load(path)
    assert_same(loaded, tree)
    assert not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


@quick
@given(trees)
def test_any_safetensors_reader_opens_the_file(tmp_path, tree):
    path = tmp_path / "tree.safetensors"
    fn.save(path, tree)
    rows = dict(safetensors.deserialize(path.read_bytes()))
    arrays = {name: leaf for name, leaf in _leaves_by_name(tree).items() if isinstance(leaf, np.ndarray)}
    for name, array in arrays.items():
        assert bytes(rows[name]["data"]) == array.tobytes()
        if array.dtype.name not in _tensors.AS_BYTES:
            assert (rows[name]["dtype"], tuple(rows[name]["shape"])) == (
                _safetensors.CODE_OF[array.dtype.name],
                array.shape,
            )
    assert len(rows) == len(jax.tree.leaves(tree))


def _leaves_by_name(tree: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    store._walk(tree, (), leaves, [])
    return leaves


def test_type_codes_are_those_of_the_safetensors_package():
    for code, dtype in _safetensors.CODES.items():
        spec = safetensors.TensorSpec(dtype=dtype, shape=[0], data_ptr=1, data_len=0)
        assert spec.dtype == code


def test_paths_that_look_alike_have_different_names(tmp_path):
    tree = {
        "a.b": 1,
        "a": {"b": 2, "": {"": 3}},
        "a~1b": 4,
        "a~b": 5,
        "": 6,
        "__metadata__": 7,
        "~__metadata__": 8,
    }
    fn.save(tmp_path / "f", tree)
    assert_same(fn.load(tmp_path / "f"), tree)
    assert_same(fn.load(tmp_path / "f", like=tree), tree)


def test_same_tree_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        fn.save(tmp_path / name, small_tree())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_are_aligned(tmp_path):
    tree = {
        "a": np.ones(3, np.int8),
        "b": np.ones(3, np.float32),
        "c": np.ones(1, np.float64),
        "d": np.ones(1, "e"),
    }
    fn.save(tmp_path / "f", tree)
    with open(tmp_path / "f", "rb") as file:
        tensors, _ = _tensors.read_tensors(file, "f")
    assert all(tensor.begin % tensor.stored.itemsize == 0 for tensor in tensors.values())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6, dtype=">c16").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0).reshape(4, 3)[::-2],
        np.broadcast_to(np.float32(1), (2, 3)),
    ],
)
def test_layout_in_memory_does_not_matter(tmp_path, array):
    fn.save(tmp_path / "f", array)
    native = array.dtype.newbyteorder("=")
    assert_same(fn.load(tmp_path / "f", like=np.empty(array.shape, native)), array.astype(native))


def test_numpy_scalar_is_an_array(tmp_path):
    fn.save(tmp_path / "f", np.float32(2.5))
    assert_same(fn.load(tmp_path / "f"), jnp.float32(2.5))


class State(NamedTuple):
    step: Any
    params: Any


def test_optimiser_state_and_named_tuples_with_like(tmp_path):
    params = {"w": jnp.linspace(0, 1, 6, dtype=jnp.float32).reshape(2, 3), "b": None}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 9)))
    opt_state = jax.tree.map(lambda x: x + jnp.ones_like(x), optimizer.init(params))
    tree = (State(jnp.int32(1), params), opt_state)
    fn.save(tmp_path / "f", tree)
    assert_same(fn.load(tmp_path / "f", like=tree), tree)
    like = jax.eval_shape(lambda: (State(jnp.int32(0), params), optimizer.init(params)))
    assert_same(fn.load(tmp_path / "f", like=like), tree)


def test_partial_and_registered_dataclass_with_like(tmp_path):
    tree = [jax.tree_util.Partial(jnp.dot, jnp.ones(2), b=jnp.zeros(3))]
    fn.save(tmp_path / "f", tree)
    assert_same(fn.load(tmp_path / "f", like=tree), tree)
    with pytest.raises(StructureError, match="'0': 'Partial'"):
        fn.load(tmp_path / "f")


def test_like_decides_between_numpy_and_jax(tmp_path):
    fn.save(tmp_path / "f", {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float32)})
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    loaded = fn.load(tmp_path / "f", like={"a": np.empty(2, np.float32), "b": shape})
    assert isinstance(loaded["a"], np.ndarray)
    assert isinstance(loaded["b"], jax.Array)


def test_64_bits_need_64_bit_mode(tmp_path):
    tree = {"a": np.arange(3.0), "b": np.arange(3), "c": np.ones(3, np.float32)}
    fn.save(tmp_path / "f", tree)
    with jax.enable_x64(True):
        assert_same(fn.load(tmp_path / "f"), tree)
    with jax.enable_x64(False):
        with pytest.raises(DTypeError) as caught:
            fn.load(tmp_path / "f")
        assert_same(fn.load(tmp_path / "f", like=tree), tree)
    assert str(caught.value) == textwrap.dedent(f"""\
        load: {tmp_path}/f holds 64-bit arrays, and JAX's 64-bit mode is off:
          'a': float64[3]
          'b': int64[3]
          hint      load it within jax.enable_x64(True), or give `like` NumPy arrays to get such""")


# What version 1 of the format looks like (zlib, base64): later versions of funcnet must go on reading it.
VERSION_1 = """
eNplU8uK20AQNOwhv2HmLMy8H74k5BDYD8jJMmYePdhEkY01XlYYQT49LcnOiqwQQ0+rq2q6erR6WU3PnRwOv6H45Is/HMj2TvKtjS2U
TXf0XGmyJZzFlGOwKioXA5PUi2Sd00kbnp2jLnFhnfZR+Mh1Do4aC8xln2OijClSPTmR7F6TN7h2p3Nbky2ralKuABhiPp1imaNf0GNQ
kwZ8rgkWNb5H0PyxOXVj2Q7Dcrs0I3j3r7S9Nc1+qBZsw4D7mnQFLgvOYcwVaLvzk/ZRgNGlL8fpeDU5tWXSn72YUkIFEJwn6mR2iSnp
rQ9eGiGClc5kZqlQIiTjwQTqmcqOBmV1UNJlbgNqV88OF62WI/qQrz1/F/x/SQlacatwRes1zVIKLx2XYKIHQFrJHDMuOc2EtjwyzX3Q
UQEIR6WGWXL2cEM39NHwh0AwVOnkhWHUShN4BmpMUJoyfHnG0Sdks8LiLUAQS3giFAmo6BQNcfRzQJHJxPEOpdJfAKf9qiVOH5XG3W5f
kemanXPuoHSYoZXF6YwmLFE/BV+g+GeYrZgecR8tLeHffzC9wIvPeKYrzvfDsF6vH7/B9HyZ1j9fV9/+Ak+O6VY=
"""


def test_version_1_of_the_format(tmp_path):
    content = zlib.decompress(base64.b64decode(VERSION_1))
    tree = {"layers": [(jnp.arange(3, dtype=jnp.bfloat16), None), {}], "key": jax.random.key(7), "step": 3}
    (tmp_path / "f").write_bytes(content)
    assert_same(fn.load(tmp_path / "f"), tree)
    fn.save(tmp_path / "g", tree)
    assert (tmp_path / "g").read_bytes() == content


# --- what load refuses ------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "f"
    fn.save(path, {"w": jnp.arange(30, dtype=jnp.bfloat16), "layers": [(None, 3)]})
    good = path.read_bytes()
    silent = 0
    for position in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(FileFormatError):
                fn.load(path)
            with contextlib.suppress(safetensors.SafetensorError):
                silent += len(safetensors.deserialize(bytes(damaged))) == 2
    assert silent > len(good)  # without our checksums many would pass


def test_every_truncation_and_extension_is_found(tmp_path):
    path = tmp_path / "f"
    fn.save(path, small_tree())
    good = path.read_bytes()
    for damaged in [*(good[:n] for n in range(len(good))), good + b"\0", good + good]:
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError):
            fn.load(path)


def plain(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file as another program would write it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def row(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ROW = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
MALFORMED = {
    "empty": (b"", "an empty file"),
    "seven bytes": (b"\1" * 7, "cut short"),
    "length beyond the file": (plain({}, length=10**9), "cut short"),
    "length of 2^63": (plain({}, length=2**63), "cut short"),
    "header too long": (plain(b"{}" + b" " * _safetensors.MAX_HEADER), "header is too long"),
    "not UTF-8": (plain(b'{"\xff":1}'), "not valid JSON"),
    "not JSON": (plain(b"{x"), "not valid JSON"),
    "NaN": (plain(b'{"a":NaN}'), "not valid JSON"),
    "huge integer": (plain(b'{"a":' + b"9" * 9999 + b"}"), "not valid JSON"),
    "leading space": (plain(b" {}"), "not a JSON object"),
    "a list": (plain([]), "not a JSON object"),
    "too deep": (plain(b'{"a":' * 10**5 + b"1" + b"}" * 10**5), "not valid JSON"),
    "a tensor twice": (plain(b'{"a":%b,"a":%b}' % (ROW, ROW), b"x"), "'a' is there twice"),
    "a field twice": (
        plain(b'{"a":%b}' % ROW.replace(b"{", b'{"dtype":"U8",'), b"x"),
        "'dtype' is there twice",
    ),
    "metadata twice": (plain(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' is there twice"),
    "metadata not text": (plain({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (plain({"__metadata__": []}), "__metadata__"),
    "row a list": (plain({"a": []}), "'a'.*row"),
    "field missing": (plain({"a": {"dtype": "U8", "shape": []}}), "'a'.*row"),
    "field unknown": (plain({"a": row() | {"x": 1}}, b"x"), "'a'.*row"),
    "dtype unknown": (plain({"a": row("Z8")}, b"x"), "'a': unknown dtype"),
    "dtype packed": (plain({"a": row("F4", (2,))}, b"x"), "'a': unknown dtype"),
    "dtype a number": (plain({"a": row(8)}, b"x"), "'a': unknown dtype"),
    "dtype a list": (plain({"a": row([])}, b"x"), "'a': unknown dtype"),
    "shape negative": (plain({"a": row(shape=(-1,))}, b"x"), "'a': impossible shape"),
    "shape negative twice": (plain({"a": row(shape=(-1, -1))}, b"x"), "'a': impossible shape"),
    "shape a float": (plain({"a": row(shape=(1.0,))}, b"x"), "'a': impossible shape"),
    "shape a boolean": (plain({"a": row(shape=(True,))}, b"x"), "'a': impossible shape"),
    "shape a number": (plain({"a": row(shape=1)}, b"x"), "'a': impossible shape"),
    "shape overflowing": (plain({"a": row("F64", (2**62, 2**62), (0, 0))}), "'a': impossible shape"),
    "shape overflowing, empty": (
        plain({"a": row("F64", (0, 2**62, 2**62), (0, 0))}),
        "'a': impossible shape",
    ),
    "shape of 65 axes": (plain({"a": row(shape=(1,) * 65)}, b"x"), "'a': impossible shape"),
    "offsets three": (plain({"a": row(offsets=(0, 1, 2))}, b"x"), "'a': its bytes do not fit|impossible"),
    "offsets one": (plain({"a": row(offsets=(1,))}, b"x"), "'a': its bytes do not fit|impossible"),
    "offsets negative": (plain({"a": row(offsets=(-1, 0))}, b"x"), "'a': impossible data_offsets"),
    "offsets reversed": (plain({"a": row(offsets=(1, 0))}, b"x"), "'a': its bytes do not fit"),
    "size and shape differ": (
        plain({"a": row(shape=(3,), offsets=(0, 2))}, b"xx"),
        "'a': its bytes do not fit",
    ),
    "hole first": (plain({"a": row(offsets=(1, 2))}, b"xx"), "'a' leaves a hole"),
    "hole": (plain({"a": row(), "b": row(offsets=(2, 3))}, b"xxx"), "'b' leaves a hole"),
    "overlap": (plain({"a": row(), "b": row()}, b"x"), "'b' overlaps"),
    "overlap in part": (
        plain({"a": row(shape=(2,), offsets=(0, 2)), "b": row(offsets=(1, 2))}, b"xx"),
        "'b' overlaps",
    ),
    "cut short": (plain({"a": row(shape=(2,), offsets=(0, 2))}, b"x"), "cut short"),
    "huge tensor": (plain({"a": row(shape=(2**60,), offsets=(0, 2**60))}, b"x"), "cut short"),
    "trailing byte": (plain({"a": row()}, b"xx"), "after its last tensor"),
    "boolean of 2": (plain({"a": row("BOOL")}, b"\2"), "'a': a boolean is neither 0 nor 1"),
}
# What the safetensors package (0.8.0) accepts.
LENIENT = {
    "a tensor twice",
    "field unknown",
    "dtype packed",
    "boolean of 2",
    "header too long",
    "leading space",
    "shape of 65 axes",
    "shape overflowing, empty",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(tmp_path, name):
    content, message = MALFORMED[name]
    path = tmp_path / "hostile"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        fn.load(path)
    assert str(caught.value).startswith(f"load: {path}: ")
    assert caught.value.path in (str(path), "a", "b")
    if name not in LENIENT:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(content)


@quick
@given(st.data())
def test_what_the_safetensors_package_refuses_is_refused(tmp_path, data):
    path = tmp_path / "mutant"
    mutant = bytearray(plain({"a": row(), "b": row("F32", (2, 1), (1, 9))}, bytes(9)))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(mutant) - 1))
        mutant[position] = data.draw(st.sampled_from(b'0123456789-{}[]":, abFU\0\xff'))
    path.write_bytes(mutant)
    try:
        rows = dict(safetensors.deserialize(bytes(mutant)))
    except safetensors.SafetensorError:
        with pytest.raises(FileFormatError):
            fn.load(path)
    else:
        with contextlib.suppress(FileFormatError):  # ours may be stricter, not different
            with jax.enable_x64(True):
                loaded = fn.load(path)
            assert {name: bytes(np.asarray(x).tobytes()) for name, x in loaded.items()} == {
                name: bytes(row["data"]) for name, row in rows.items()
            }


def forged(
    info: Any, rows: dict[str, Any], data: bytes = b"", metadata: dict[str, str] | None = None
) -> bytes:
    """A malicious file: whatever it says, its checksums are right."""
    text = info if isinstance(info, str) else json.dumps(info)
    metadata = {"funcnet": text, "funcnet.sha256": "0" * 64} | (metadata or {})
    content = plain({"__metadata__": metadata} | rows)
    checksum = hashlib.sha256(content).hexdigest()
    return content.replace(b"0" * 64, checksum.encode(), 1) + data


def info(tree: Any, version: Any = 1, **notes: Any) -> dict[str, Any]:
    """The header's entry for tensors of the one byte b"x"."""
    checksum = hashlib.sha256(b"x").hexdigest()
    return {
        "version": version,
        "tree": tree,
        "tensors": {k: {"sha256": checksum} | v for k, v in notes.items()},
    }


def test_the_forger_can_forge(tmp_path):
    (tmp_path / "f").write_bytes(forged(info({"dict": {"a": "leaf"}}, a={}), {"a": row()}, b"x"))
    assert_same(fn.load(tmp_path / "f"), {"a": jnp.array([ord("x")], jnp.uint8)})


LEAF = {"dict": {"a": "leaf"}}
DEEP: Any = "leaf"
for _ in range(101):
    DEEP = {"list": [DEEP]}
FORGED = {
    "no version": (forged({"tree": None, "tensors": {}}, {}), "no version"),
    "version 0": (forged(info(None, 0), {}), "no version"),
    "version true": (forged(info(None, True), {}), "no version"),
    "version 2": (forged(info(None, 2), {}), "a later funcnet"),
    "not JSON": (forged("{", {}), "`funcnet` is not valid JSON"),
    "a list": (forged([], {}), "no version"),
    "too deep JSON": (forged("[" * 10**5, {}), "`funcnet` is not valid JSON"),
    "a key twice": (
        forged('{"version":1,"tree":{"dict":{"a":null,"a":null}},"tensors":{}}', {}),
        "'a' is there twice",
    ),
    "a part missing": (forged({"version": 1, "tree": None}, {}), "other parts"),
    "a part unknown": (forged(info(None) | {"code": "x"}, {}), "other parts"),
    "checksum missing": (plain({"__metadata__": {"funcnet": json.dumps(info(None))}}), "lacks"),
    "checksum alone": (plain({"__metadata__": {"funcnet.sha256": "0" * 64}}), "lacks"),
    "checksum not hexadecimal": (forged(info(None), {}, metadata={"funcnet.sha256": "x" * 64}), "lacks"),
    "note missing": (forged(info(LEAF), {"a": row()}, b"x"), "one of two places: 'a'"),
    "note of nothing": (forged(info(None, a={}), {}), "one of two places: 'a'"),
    "note without checksum": (
        forged({"version": 1, "tree": LEAF, "tensors": {"a": {}}}, {"a": row()}, b"x"),
        "'a': its note",
    ),
    "note a list": (
        forged({"version": 1, "tree": LEAF, "tensors": {"a": []}}, {"a": row()}, b"x"),
        "'a': its note",
    ),
    "note unknown": (forged(info(LEAF, a={"pickle": "x"}), {"a": row()}, b"x"), "'a': its note"),
    "note a number": (forged(info(LEAF, a={"key": 1}), {"a": row()}, b"x"), "'a': its note"),
    "checksum wrong": (forged(info(LEAF, a={"sha256": "0"}), {"a": row()}, b"x"), "'a' .bytes .* is damaged"),
    "dtype unknown": (
        forged(info(LEAF, a={"dtype": "object"}), {"a": row()}, b"x"),
        "unknown dtype 'object'",
    ),
    "dtype of another size": (
        forged(info(LEAF, a={"dtype": "complex128"}), {"a": row()}, b"x"),
        "last axis of 16",
    ),
    "dtype of a scalar": (
        forged(info(LEAF, a={"dtype": "int4"}), {"a": row(shape=())}, b"x"),
        "last axis of 1",
    ),
    "dtype of another type": (forged(info(LEAF, a={"dtype": "int4"}), {"a": row("I8")}, b"x"), "needs U8"),
    "Python type unknown": (forged(info(LEAF, a={"python": "eval"}), {"a": row()}, b"x"), "a Python eval"),
    "Python type of an array": (
        forged(info(LEAF, a={"python": "bool"}), {"a": row("BOOL")}, b"x"),
        "a Python bool",
    ),
    "Python type of another": (
        forged(info(LEAF, a={"python": "int"}), {"a": row(shape=())}, b"x"),
        "a Python int",
    ),
    "key unknown": (forged(info(LEAF, a={"key": "nope"}), {"a": row()}, b"x"), "unrecognized PRNG"),
    "key of bytes": (forged(info(LEAF, a={"key": "rbg"}), {"a": row()}, b"x"), "'a': its note does not fit"),
    "key of a number": (
        forged(info(LEAF, a={"key": "rbg", "python": "bool"}), {"a": row("BOOL", ())}, b"x"),
        "a Python bool",
    ),
    "tree of other tensors": (
        forged(info({"dict": {"b": "leaf"}}, a={}), {"a": row()}, b"x"),
        "malformed at 'b'",
    ),
    "tree without tensors": (forged(info(None, a={}), {"a": row()}, b"x"), "leaves out"),
    "tree of no container": (forged(info({"set": []}), {}), "malformed at the root"),
    "tree of two containers": (forged(info({"dict": {}, "list": []}), {}), "malformed at the root"),
    "tree of numbers": (forged(info(1), {}), "malformed at the root"),
    "dict of a list": (forged(info({"dict": []}), {}), "malformed at the root"),
    "list of a dict": (forged(info({"list": {}}), {}), "malformed at the root"),
    "tree too deep": (
        forged(info(DEEP, **{".".join("0" * 101): {}}), {".".join("0" * 101): row()}, b"x"),
        "100 cont",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused(tmp_path, name):
    content, message = FORGED[name]
    path = tmp_path / "hostile"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        fn.load(path)
    assert str(caught.value).startswith(f"load: {path}: ")


@linux
def test_long_names_below_many_leaves_do_not_exhaust_memory(tmp_path):
    # Each of the leaves would have a name of 4 MB.
    tree = {"dict": {"x" * 4 * 10**6: {"list": ["leaf"] * 10**6}}}
    (tmp_path / "f").write_bytes(forged(info(tree), {}))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    try:
        with pytest.raises(FileFormatError, match="malformed"):
            fn.load(tmp_path / "f")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    "name", ["../../escape", "/tmp/escape", "a/b", "..", "a\0b", "", "x" * 10**5, "\ud800"]
)
def test_names_are_only_names(tmp_path, name):
    """A name is never used as a path, so none needs to be refused."""
    path = tmp_path / "inner" / "f"
    path.parent.mkdir()
    path.write_bytes(plain({name: row()}, b"x"))
    assert_same(fn.load(path), {name: jnp.array([ord("x")], jnp.uint8)})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(FileFormatError, match="not a regular file"):
            fn.load(path)
    with pytest.raises(FileNotFoundError):
        fn.load(tmp_path / "absent")


def test_file_of_another_program(tmp_path):
    tensors = {"h.0.w": np.arange(6, dtype=np.float32).reshape(2, 3), "h.0.b": np.zeros(3, np.float16)}
    safetensors.numpy.save_file(tensors, tmp_path / "f", metadata={"format": "pt"})
    assert_same(fn.load(tmp_path / "f"), tensors)
    nested = {"h": [{"w": tensors["h.0.w"], "b": tensors["h.0.b"]}]}
    assert_same(fn.load(tmp_path / "f", like=nested), nested)


# --- like -------------------------------------------------------------------------------------------------


def test_all_differences_from_like_are_listed(tmp_path):
    fn.save(
        tmp_path / "f",
        {"a": jnp.ones(3, jnp.float32), "b": jnp.ones((2, 1), jnp.bfloat16), "c": 3, "d": None},
    )
    like = {
        "a": jax.ShapeDtypeStruct((1,), jnp.float32),  # would broadcast
        "b": jax.ShapeDtypeStruct((2, 1), jnp.float32),  # would cast
        "d": jax.ShapeDtypeStruct((), jnp.int32),
        "e": jax.eval_shape(lambda: jax.random.key(0)),
    }
    with pytest.raises(StructureError) as caught:
        fn.load(tmp_path / "f", like=like)
    assert str(caught.value) == textwrap.dedent(f"""\
        load: {tmp_path}/f does not fit `like`:
          missing     'd': int32[]
          missing     'e': key<fry>[]
          unexpected  'c': Python int
          mismatched  'a': `like` has float32[1], the file float32[3]
          mismatched  'b': `like` has float32[2, 1], the file bfloat16[2, 1]""")
    assert caught.value.path == "like"


def test_hint_where_only_dtypes_differ(tmp_path):
    fn.save(tmp_path / "f", {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)})
    with pytest.raises(StructureError) as caught:
        fn.load(tmp_path / "f", like={"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float32)})
    assert caught.value.hint == "only dtypes differ: give `like` those of the file, and cast what you load"
    with pytest.raises(StructureError) as caught:
        fn.load(tmp_path / "f", like={"a": jnp.ones(2, jnp.float32), "b": jnp.ones(3, jnp.float32)})
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("saved", "like"),
    [
        (3, True),
        (3, 3.0),
        (3, jnp.int32(3)),
        (np.int32(3), 3),
        (jax.random.key(0), jax.random.key(0, impl="rbg")),
        (jax.random.key(0), jax.random.key_data(jax.random.key(0))),
        (np.zeros(2, jnp.bfloat16), np.zeros(2, np.float16)),
        (np.zeros(2, np.int8), np.zeros(2, np.uint8)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros((0, 3)), np.zeros((0, 2))),
        (np.zeros(()), np.zeros(1)),
        (np.zeros(2), "text"),
    ],
)
def test_like_is_matched_exactly(tmp_path, saved, like):
    fn.save(tmp_path / "f", saved)
    with pytest.raises(StructureError, match="mismatched"):
        fn.load(tmp_path / "f", like=like)


def test_like_may_not_be_what_no_file_holds(tmp_path):
    fn.save(tmp_path / "f", [jnp.ones(2)])
    with pytest.raises(StructureError, match="the dict key 0 is an int, not a str"):
        fn.load(tmp_path / "f", like={0: jnp.ones(2)})


# --- what save refuses ------------------------------------------------------------------------------------


def test_all_that_cannot_be_stored_is_listed(tmp_path):
    tree = {
        "text": "x",
        "object": np.array([None]),
        "date": np.zeros(2, "M8[s]"),
        "big": 2**63,
        "float0": np.zeros(2, jax.dtypes.float0),
        "layers": [{1: jnp.ones(2)}, {"\ud800": jnp.ones(2)}],
        "fine": jnp.ones(2),
    }
    with pytest.raises(StructureError) as caught:
        fn.save(tmp_path / "f", tree)
    assert str(caught.value) == textwrap.dedent(f"""\
        save: {tmp_path}/f: the tree cannot be stored:
          'layers.0': the dict key 1 is an int, not a str
          'layers.1': the dict key '\\ud800' is not valid Unicode
          'big': this Python int does not fit into 64 bits
          'date': elements of type datetime64[s] cannot be stored
          'float0': elements of type [('float0', 'V')] cannot be stored
          'object': elements of type object cannot be stored
          'text': a leaf must be an array, a key or a number, not a str""")
    assert os.listdir(tmp_path) == []


def donated():
    x = jnp.ones(2)
    x.delete()
    return x


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (np.ma.masked_array([1.0, 2.0], [True, False]), "a masked array, whose mask would be lost"),
        (np.ma.masked_array([1.0, 2.0]), "a masked array"),
        (np.ma.masked, "a masked array"),
        (np.zeros(2, [("a", "f4")]), "elements of type"),
        (np.zeros(2, [("a", "f4")]).view(np.recarray), "a recarray"),
        (np.ones((2, 2)).view(np.matrix), "a matrix, which would come back as a plain array"),
        (np.array(["x"]), "elements of type"),
        (np.zeros(2, np.longdouble), "elements of type"),
        (donated(), "an array that was deleted, or donated"),
    ],
)
def test_a_leaf_that_is_more_than_its_elements_is_refused(tmp_path, leaf, said):
    with pytest.raises(StructureError, match=f"'w': .*{said}"):
        fn.save(tmp_path / "f", {"w": leaf})
    assert os.listdir(tmp_path) == []


def test_arrays_in_any_layout_come_back(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.int16, "w+", shape=(3, 4))
    mapped[:] = np.arange(12).reshape(3, 4)
    for array in (mapped, mapped.T, mapped[::2, ::-1], mapped.astype(">i2"), np.asfortranarray(mapped)):
        fn.save(tmp_path / "f", array)
        assert_same(fn.load(tmp_path / "f", like=np.zeros(array.shape, np.int16)), np.array(array, np.int16))


def test_keys_of_an_unregistered_implementation_are_refused(tmp_path):
    def unused(*args):
        raise AssertionError

    mine = jax.extend.random.define_prng_impl(
        key_shape=(2,),
        seed=unused,
        split=unused,
        random_bits=unused,
        fold_in=unused,
        name="mine",
        tag="mine",
    )
    with pytest.raises(StructureError, match=r"'k': keys of an implementation without a name .*mine"):
        fn.save(tmp_path / "f", {"k": jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl=mine)})


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """A node that gives both of its children the same name."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("x"), 1), (jax.tree_util.GetAttrKey("x"), 2)], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls()


def test_names_must_be_unique(tmp_path):
    with pytest.raises(StructureError, match=r"'x': two leaves have this name"):
        fn.save(tmp_path / "f", Twins())


def test_what_save_writes_load_reads_up_to_the_limits(tmp_path, monkeypatch):
    tree: Any = 1.5
    for _ in range(100):
        tree = [tree]
    fn.save(tmp_path / "f", tree)
    assert_same(fn.load(tmp_path / "f"), tree)
    with pytest.raises(StructureError, match="deeper than 100"):
        fn.save(tmp_path / "g", [tree])
    monkeypatch.setattr(_safetensors, "MAX_HEADER", 1000)
    with pytest.raises(ValueRangeError, match="at most 1000 bytes"):
        fn.save(tmp_path / "g", {"x" * 1000: 1.5})
    assert not (tmp_path / "g").exists()


def test_traced_arrays_are_refused(tmp_path):
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda x: fn.save(tmp_path / "f", x))(1.0)
    assert os.listdir(tmp_path) == []


# --- the write --------------------------------------------------------------------------------------------

OLD, NEW = {"w": np.zeros(4, np.float32)}, {"w": np.ones(400_000, np.float32), "z": np.ones(2, np.float32)}


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, step, error):
    fn.save(tmp_path / "f", OLD)

    def fail(*args: Any, **kwargs: Any):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store.os, step, fail)
        with pytest.raises(type(error)) as caught:
            fn.save(tmp_path / "f", NEW)
    assert step == "open" or caught.value.__notes__[-1] == f"save: {tmp_path}/f is as it was before."
    assert os.listdir(tmp_path) == ["f"]
    assert_same(fn.load(tmp_path / "f", like=OLD), OLD)


def test_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path):
    fn.save(tmp_path / "f", OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fn.save(tmp_path / "f", NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["f"]
    assert_same(fn.load(tmp_path / "f", like=OLD), OLD)


@linux
def test_order_of_the_write(tmp_path, monkeypatch):
    """The file is synced before it takes its name, and the folder after."""
    log: list[str] = []
    fsync, replace = os.fsync, os.replace

    def logged_fsync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        log.append("folder" if os.path.isdir(target) else f"{os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def logged_replace(source: str, target: str) -> None:
        log.append("rename")
        replace(source, target)

    monkeypatch.setattr(_safetensors.os, "fsync", logged_fsync)
    monkeypatch.setattr(_safetensors.os, "replace", logged_replace)
    fn.save(tmp_path / "f", NEW)
    assert log == [f"{os.path.getsize(tmp_path / 'f')} bytes", "rename", "folder"]


def test_killed_at_any_step_leaves_a_whole_file(tmp_path):
    """A child dies, without any clean-up, before each of the calls that change the disk."""
    program = """
        import os, sys
        import numpy as np
        import funcnet as fn
        from funcnet import _safetensors, store
        folder = sys.argv[1]
        names = ["open", "fsync", "replace", "open", "fsync", None]
        for step in range(len(names)):
            path = f"{folder}/{step}"
            fn.save(path, {"w": np.zeros(4, np.float32)})
            if (child := os.fork()) == 0:
                calls = []
                def dying(name):
                    real = getattr(os, name)
                    def call(*args, **kwargs):
                        if len(calls) == step:
                            os._exit(9 if names[step] == name else 1)
                        calls.append(name)
                        return real(*args, **kwargs)
                    return call
                for name in set(names[:-1]):
                    setattr(store.os, name, dying(name))
                fn.save(path, {"w": np.ones(400_000, np.float32), "z": np.ones(2, np.float32)})
                os._exit(9 if len(calls) == step else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, step
    """
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), tmp_path], check=True, timeout=100
    )
    for step in range(6):
        expected = OLD if step < 3 else NEW
        assert_same(fn.load(tmp_path / str(step), like=expected), expected)
    left = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert len(left) == 2  # of the two deaths between creating the file and renaming it


def test_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("data/f")
    for tree in (OLD, NEW):  # at first the link leads nowhere
        fn.save(link, tree)
        assert link.is_symlink()
        assert_same(fn.load(link, like=tree), tree)
        assert_same(fn.load(tmp_path / "data" / "f", like=tree), tree)
    assert sorted(os.listdir(tmp_path)) == ["data", "latest"]


def test_mode_follows_the_umask_and_paths_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = os.umask(0o027)
    try:
        fn.save("f", OLD)
    finally:
        os.umask(old)
    assert os.stat("f").st_mode & 0o777 == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755, 0o444])
def test_a_file_keeps_its_mode(tmp_path, mode):
    link = tmp_path / "latest"
    link.symlink_to("f")
    fn.save(link, OLD)
    os.chmod(tmp_path / "f", mode)
    fn.save(link, NEW)
    assert link.is_symlink()
    assert os.stat(tmp_path / "f").st_mode & 0o7777 == mode
    assert_same(fn.load(link, like=NEW), NEW)


def test_folder_problems_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path}/absent; create it first"):
        fn.save(tmp_path / "absent" / "f", OLD)
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder"):
        fn.save(tmp_path, OLD)


# --- messages ---------------------------------------------------------------------------------------------


def test_message_for_a_damaged_tensor(tmp_path):
    path = tmp_path / "f"
    fn.save(path, {"conv1": {"w": np.zeros(4, np.uint8)}})
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\1")
    with pytest.raises(FileFormatError) as caught:
        fn.load(path)
    assert str(caught.value) == textwrap.dedent(f"""\
        load: {path}: tensor 'conv1.w' (bytes {len(good) - 4} to {len(good)}) is damaged.
          expected  SHA-256 {hashlib.sha256(bytes(4)).hexdigest()}
          got       SHA-256 {hashlib.sha256(bytes(3) + bytes([1])).hexdigest()}""")
    assert caught.value.path == "conv1.w"


def test_message_for_a_later_version(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(forged(info(None, 2), {}))
    with pytest.raises(FileFormatError) as caught:
        fn.load(path)
    assert str(caught.value) == textwrap.dedent(f"""\
        load: {path}: a later funcnet wrote this.
          expected  version 1
          got       version 2
          hint      upgrade funcnet""")


def test_message_for_nodes_that_need_like(tmp_path):
    path = tmp_path / "f"
    fn.save(path, {"o": optax.sgd(0.1, momentum=0.9).init(jnp.ones(2))})
    with pytest.raises(StructureError) as caught:
        fn.load(path)
    assert str(caught.value) == textwrap.dedent(f"""\
        load: {path}: the tree has nodes that only `like` can rebuild:
          'o.0': 'TraceState'
          'o.1': 'EmptyState'
          hint      pass `like`, a tree of the same structure, as from jax.eval_shape""")


def test_message_for_a_file_cut_short(tmp_path):
    path = tmp_path / "f"
    fn.save(path, OLD)
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(FileFormatError) as caught:
        fn.load(path)
    assert str(caught.value) == textwrap.dedent(f"""\
        load: {path}: the file is cut short.
          expected  {len(good)} bytes
          got       {len(good) - 1} bytes""")
