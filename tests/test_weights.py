"""Weight files: layouts, coverage, and every way in which a file can be bad."""

import subprocess
import sys
from collections import OrderedDict
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import Call, Callable, FakeGlobal, torch_tensor, write_torch
from flax import linen as nn
from flax import serialization
from safetensors.numpy import save_file

from jax3d import weights
from jax3d.weights import WeightsError


class Net(nn.Module):
    """One layer of every kind that has a layout of its own."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="blocks_0_conv")(x)
        x = nn.LayerNorm(name="norm")(x)
        x = nn.Dense(5, name="net_0")(x)
        return x + nn.Embed(7, 5, name="table")(jnp.array(2))


def tree_like():
    return jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)))["params"]


def checkpoint(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {
        "blocks.0_conv.weight": (6, 4, 3, 3),
        "blocks.0_conv.bias": (6,),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "net.0.weight": (5, 6),
        "net.0.bias": (5,),
        "table.weight": (7, 5),
    }
    return {k: rng.standard_normal(s).astype(dtype) for k, s in shapes.items()}


def direct_conv(x, w, b):
    """Correlation with padding 1, as torch's Conv2d defines it: x[h,w,c], w[o,c,kh,kw]."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    return np.einsum("hwcij,ocij->hwo", windows, w) + b


def test_torch_layouts_compute_the_same_function():
    flat = checkpoint()
    x = np.random.default_rng(1).standard_normal((8, 8, 4)).astype(np.float32)
    y = direct_conv(x, flat["blocks.0_conv.weight"], flat["blocks.0_conv.bias"])
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * flat["norm.weight"] + flat["norm.bias"]
    y = y @ flat["net.0.weight"].T + flat["net.0.bias"] + flat["table.weight"][2]
    out = Net().apply({"params": weights.to_flax(flat, tree_like())}, x[None])
    np.testing.assert_allclose(out[0], y, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, jnp.bfloat16])
def test_safetensors_of_any_precision_are_cast_on_the_way(tmp_path, dtype):
    flat = checkpoint(dtype)
    save_file(flat, tmp_path / "model.safetensors")
    tree = weights.to_flax(weights.load(tmp_path / "model.safetensors"), tree_like())
    assert tree["net_0"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(tree["net_0"]["kernel"].T, flat["net.0.weight"].astype("f4"))


def test_shards_are_joined_and_a_lost_tensor_is_named(tmp_path):
    flat = checkpoint()
    names = list(flat)
    save_file({k: flat[k] for k in names[:3]}, tmp_path / "a.safetensors")
    save_file({k: flat[k] for k in names[3:]}, tmp_path / "b.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    shards = {k: "a.safetensors" if k in names[:3] else "b.safetensors" for k in names}
    index.write_text(serialized := str({"weight_map": shards}).replace("'", '"'))
    assert weights.find_weights(tmp_path, "model") == index
    loaded = weights.load(index)
    assert all(np.array_equal(loaded[k], flat[k]) for k in names)
    index.write_text(serialized.replace("table", "chair"))
    with pytest.raises(WeightsError, match=r"chair\.weight"):
        weights.load(index)


def test_full_precision_and_safetensors_come_first(tmp_path):
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
    assert weights.find_weights(tmp_path, "model").name == "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    assert weights.find_weights(tmp_path, "model").name == "model.fp16.safetensors"
    with pytest.raises(WeightsError, match=r"diffusion_flax_model\.msgpack"):
        weights.find_weights(tmp_path, "diffusion_pytorch_model")


def test_missing_surplus_and_misshapen_tensors_are_all_named():
    flat = checkpoint()
    del flat["norm.bias"]
    flat["extra.weight"] = np.zeros(3, np.float32)
    flat["net.0.weight"] = np.zeros((5, 7), np.float32)
    with pytest.raises(WeightsError) as error:
        weights.to_flax(flat, tree_like(), "x.safetensors")
    for part in (
        "x.safetensors",
        "1 missing: norm/bias",
        "surplus: extra.weight",
        "(wanted (6, 5)",
    ):
        assert part in str(error.value)


def test_a_1x1_convolution_and_a_linear_layer_pass_for_each_other():
    flat = checkpoint()
    as_conv = flat | {"net.0.weight": flat["net.0.weight"][:, :, None, None]}
    kernel = weights.to_flax(as_conv, tree_like())["net_0"]["kernel"]
    np.testing.assert_array_equal(kernel, flat["net.0.weight"].T)
    like = {"conv": {"kernel": jax.ShapeDtypeStruct((1, 1, 6, 5), jnp.float32)}}
    kernel = weights.to_flax({"conv.weight": flat["net.0.weight"]}, like)["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], flat["net.0.weight"].T)


def test_flax_msgpack_loads_untransposed(tmp_path):
    tree = weights.to_flax(checkpoint(), tree_like())
    path = tmp_path / "diffusion_flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, tree)))
    loaded = weights.to_flax(weights.load(path), tree_like())
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, loaded))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="not a Flax msgpack"):
        weights.load(path)


@pytest.mark.parametrize("cut", [4, 30, 400, -1])
def test_truncated_safetensors_say_so(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    save_file(checkpoint(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match="truncated"):
        weights.load(path)


def test_what_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((5).to_bytes(8, "little") + b"[1,2]" + b"\0" * 8)
    with pytest.raises(WeightsError, match="malformed"):
        weights.load(path)
    with pytest.raises(WeightsError, match="no such"):
        weights.load(tmp_path / "absent.safetensors")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(WeightsError, match="unknown kind"):
        weights.load(tmp_path / "model.onnx")


@pytest.mark.parametrize("nested", [False, True])
def test_torch_pickles_are_read_without_torch(tmp_path, nested):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    b = np.arange(4, dtype=np.float16)
    content = OrderedDict(
        a=torch_tensor("0", a),
        transposed=torch_tensor("0", np.zeros((3, 2), np.float32), strides=(1, 3)),
        b=torch_tensor("1", b[2:], "HalfStorage", offset=2),
        step=3,
    )
    path = tmp_path / "model.ckpt"
    write_torch(path, {"state_dict": content, "epoch": 1} if nested else content, {"0": a, "1": b})
    flat = weights.load(path)
    assert set(flat) == {"a", "transposed", "b"}
    np.testing.assert_array_equal(flat["a"], a)
    np.testing.assert_array_equal(flat["transposed"], a.T)
    np.testing.assert_array_equal(flat["b"], [2, 3])


def test_a_pickle_of_several_networks_names_them(tmp_path):
    a, b = np.arange(3, dtype=np.float32), np.ones(2, np.float32)
    parts = {"one": {"w": torch_tensor("0", a)}, "other": {"w": torch_tensor("1", b)}, "step": 3}
    write_torch(tmp_path / "model.ckpt", parts, {"0": a, "1": b})
    flat = weights.load(tmp_path / "model.ckpt")
    assert set(flat) == {"one.w", "other.w"}
    np.testing.assert_array_equal(flat["one.w"], a)
    np.testing.assert_array_equal(flat["other.w"], b)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "ran"
    path = tmp_path / "model.bin"
    write_torch(path, {"a": Call(Callable("os", "system"), f"touch {mark}")}, {})
    with pytest.raises(WeightsError, match=r"os\.system.*nothing was run"):
        weights.load(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "collections.UserDict"])
def test_only_tensor_globals_are_known(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    write_torch(tmp_path / "m.pt", {"a": FakeGlobal(module, attribute)}, {})
    with pytest.raises(WeightsError, match=name):
        weights.load(tmp_path / "m.pt")


def test_a_tensor_may_not_reach_outside_of_its_storage(tmp_path):
    a = np.zeros(4, np.float32)
    write_torch(tmp_path / "m.bin", {"a": torch_tensor("0", a, offset=1)}, {"0": a})
    with pytest.raises(WeightsError, match="outside"):
        weights.load(tmp_path / "m.bin")


def test_damaged_pickles_say_so(tmp_path):
    path = tmp_path / "m.bin"
    a = np.zeros(4, np.float32)
    write_torch(path, {"a": torch_tensor("0", a)}, {"0": a})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(WeightsError, match="not a zip pickle"):
        weights.load(path)
    write_torch(path, {"a": torch_tensor("7", a)}, {"0": a})
    with pytest.raises(WeightsError, match="damaged pickle"):
        weights.load(path)
    write_torch(path, [1, 2], {})
    with pytest.raises(WeightsError, match="holds a list"):
        weights.load(path)


def test_own_trees_survive_a_round_trip(tmp_path):
    tree = {"a": {"0": jnp.arange(3)}, "b": (jnp.ones((2, 2)), jnp.array(0.1, jnp.float32))}
    path = tmp_path / "w.safetensors"
    weights.save_safetensors(tree, path)
    assert jax.tree.all(jax.tree.map(np.array_equal, weights.load_tree(path, tree), tree))
    weights.save_safetensors(tree, path, dtype=jnp.float16)
    half = weights.load_tree(path, tree)
    assert half["b"][1].dtype == jnp.float32
    assert half["b"][1] == np.float16(0.1)
    np.testing.assert_array_equal(half["a"]["0"], tree["a"]["0"])
    with pytest.raises(WeightsError, match=r"missing: c.*surplus: a/0, b/0, b/1"):
        weights.load_tree(path, {"c": jnp.ones(1)})
    with pytest.raises(WeightsError, match=r"misshapen: a/0 \(3,\) \(wanted \(4,\)\)"):
        weights.load_tree(path, tree | {"a": {"0": jnp.arange(4)}})
    with pytest.raises(WeightsError, match="no such"):
        weights.load_tree(tmp_path / "absent.safetensors", tree)


def peak_of_loading(path, shape):
    """Growth of the peak resident memory of a fresh process that loads `path`, bytes."""
    code = f"""
import resource, jax, jax.numpy as jnp
from jax3d import weights
like = {{str(i): {{"kernel": jax.ShapeDtypeStruct({shape}, jnp.float32)}} for i in range(40)}}
jnp.zeros(1).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tree = weights.to_flax(weights.load({str(path)!r}), like)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    unit = 1 if sys.platform == "darwin" else 1024
    return int(subprocess.check_output([sys.executable, "-c", code])) * unit


def test_loading_costs_the_file_and_little_more(tmp_path):
    shape = (1024, 1024)
    flat = {f"{i}.weight": np.ones(shape, np.float32) for i in range(40)}
    save_file(flat, tmp_path / "big.safetensors")
    size = (tmp_path / "big.safetensors").stat().st_size
    assert peak_of_loading(tmp_path / "big.safetensors", shape) <= 1.2 * size


def test_the_digest_tells_bytes_types_shapes_names_and_facts():
    trees = [
        {"a": jnp.zeros(4)},
        {"b": jnp.zeros(4)},
        {"a": jnp.zeros(2)},
        {"a": jnp.zeros((2, 2))},
        {"a": jnp.zeros(4).at[0].set(1e-7)},
        {"a": jnp.zeros(4, jnp.bfloat16)},
        {"a": jnp.zeros(4, jnp.float16)},
        {"a": jnp.zeros(())},
        {"a": jnp.zeros(1)},
        {"a": {"c": jnp.zeros(4)}},
    ]
    seen = [weights.digest(tree) for tree in trees] + [weights.digest(trees[0], {"size": 3})]
    assert len(set(seen)) == len(seen)
    assert weights.digest({"a": np.zeros(4, np.float32)}) == seen[0]
    assert weights.digest({"a": np.zeros((2, 4), np.float32).T[:, 0]}) == seen[0]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Annotated[int, "a range"], 3, 3.5),
        (tuple[Annotated[int, "a range"], ...], [64, 128], [64, "128"]),
        (Annotated[int, "a range"] | None, None, "3"),
        (Annotated[float, "a range"] | None, 1.5, float("nan")),
    ],
)
def test_a_kind_with_a_range_is_checked_as_without(kind, good, bad):
    assert weights.checked({"a": good}, {"a": kind})
    with pytest.raises(WeightsError, match="that can be meant"):
        weights.checked({"a": bad}, {"a": kind})
