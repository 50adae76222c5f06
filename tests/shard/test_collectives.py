"""What a program sends, read off its text as versions of XLA write it."""

import jax
import jax.numpy as jnp
import pytest

import funcnet as fn
from funcnet.errors import DTypeError

GROUPS = {
    "a list": "replica_groups={{0,1,2,3},{4,5,6,7}}",
    "an iota": "replica_groups=[2,4]<=[8]",
    "an iota, transposed": "replica_groups=[2,4]<=[4,2]T(1,0)",
    "axes of a mesh": "replica_groups=mesh['data'=4,'tensor'=2] {'data'}",
    "a part of an axis": "replica_groups=mesh['x'=8] {'x':(2)4}",
}


def program(*lines):
    return "\n".join(["ENTRY %main (p: f32[8]) -> f32[8] {", *(f"  {line}" for line in lines), "}"])


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_groups(groups):
    (one,) = fn.shard.collectives(
        program(f"ROOT %r = f32[8]{{0}} all-gather(%p), {groups}, dimensions={{0}}")
    )
    assert one[:4] == ("all-gather", 4, 1, 32 * 3 // 4)


def test_bytes_of_each_kind():
    groups = "replica_groups={{0,1,2,3}}"
    text = program(
        f'%a = bf16[4,8]{{1,0}} all-reduce(%p), {groups}, to_apply=%add, metadata={{op_name="jit(f)/psum"}}',
        f"%b = f32[2] reduce-scatter(%p), {groups}, to_apply=%add",
        f"%c = (f32[3]{{0}}, s32[5]{{0}}) all-to-all(%p, %q), {groups}",
        "%d = pred[6] collective-permute(%p), source_target_pairs={{0,1},{1,2}}",
        f"%e = (f32[2]{{0}}, f32[8]{{0}}) all-gather-start(%p), {groups}",
        "%f = f32[8]{0} all-gather-done(%e)",
    )
    found = fn.shard.collectives(text)
    assert [(one.kind, one.sent) for one in found] == [
        ("all-reduce", 2 * 64 * 3 // 4),
        ("reduce-scatter", 8 * 3),
        ("all-to-all", 32 * 3 // 4),
        ("collective-permute", 6),
        ("all-gather", 32 * 3 // 4),
    ]
    assert found[0].name == "jit(f)/psum"


def test_a_loop_counts_as_often_as_it_runs():
    inner = [
        "%body (p: f32[4]) -> f32[4] {",
        "  %r = f32[4] all-reduce(%p), replica_groups={{0,1}}, to_apply=%add",
        "}",
    ]
    loop = '%w = f32[4] while(%p), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    (one,) = fn.shard.collectives("\n".join(inner) + "\n" + program(loop))
    assert (one.times, one.sent) == (7, 7 * 16)
    (one,) = fn.shard.collectives("\n".join(inner) + "\n" + program(loop.partition(", backend")[0]))
    assert one.times == 1


def test_of_a_compiled_program_and_of_nothing_else():
    assert fn.shard.collectives(jax.jit(jnp.sin).lower(1.0).compile()) == []
    with pytest.raises(DTypeError, match=r"shard.collectives: program is not compiled"):
        fn.shard.collectives(jnp.sin)
