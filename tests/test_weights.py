"""Weights from files: what is read, what is refused, and how mismatches are told."""

import contextlib
import json
import os
import pickle
import warnings
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from detectors import weights
from detectors.models.faster_rcnn import FasterRCNN
from detectors.models.fcos import FCOS
from detectors.models.resnet import ResNet, ResNetConfig, resnet18
from detectors.models.torchvision_settings import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn
from detectors.ops.padding import Extent
from detectors.weights.tensor_files import TensorFileError, read_tensors


def safetensors(path, tensors, **changes):
    """Writes tensors by their safetensors names of types; ``changes`` replace parts of the first one's entry."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, array) in tensors.items():
        data = array.tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    header[next(iter(tensors))] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def opcodes(value) -> bytes:
    """What a pickle says of a plain value, without its frame."""
    return pickle.dumps(value, protocol=2)[2:-1]


def state_dict(offset=0, shape=(2, 3), strides=(3, 1), kind="FloatStorage", key="0") -> bytes:
    """The pickle that PyTorch writes for a dictionary with one tensor, ``w``."""
    storage = b"(" + opcodes("storage") + f"ctorch\n{kind}\n".encode() + opcodes(key) + opcodes("cpu") + opcodes(6)
    tensor = b"(" + storage + b"tQ" + b"".join(map(opcodes, (offset, shape, strides, False, None))) + b"t"
    whole = b"ccollections\nOrderedDict\n)R" + opcodes("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor + b"Rs"
    return b"\x80\x02" + whole + b"."


def archive(path, pickled: bytes, storage=None):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", pickled)
        file.writestr("model/byteorder", "little")
        file.writestr("model/data/0", np.arange(6, dtype=np.float32).tobytes() if storage is None else storage)
    return path


# Files


def test_safetensors_of_every_type(tmp_path):
    values = np.arange(-3, 3).reshape(2, 3)
    types = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16, "I64": "i8", "I32": "i4"}
    tensors = {f"of {kind}": (kind, values.astype(dtype)) for kind, dtype in types.items()}
    tensors["scalar"] = ("I64", np.array(7))
    tensors["empty"] = ("F32", np.zeros((0, 4), np.float32))
    found = read_tensors(safetensors(tmp_path / "w.safetensors", tensors))
    assert list(found) == list(tensors)
    for name, (_, array) in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "F8_E4M3"}, "F8_E4M3.*known are"),
        ({"data_offsets": [0, 28]}, "download it again"),
        ({"data_offsets": [-4, 20]}, "download it again"),
        ({"shape": [2, 4]}, "download it again"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, changes, message):
    path = safetensors(tmp_path / "w.safetensors", {"w": ("F32", np.zeros((2, 3), np.float32))}, **changes)
    with pytest.raises(TensorFileError, match=message):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"\x01\x02", b"\xff" * 20, b"\x02" + bytes(7) + b"no json"])
def test_what_is_no_safetensors_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(TensorFileError, match="w.safetensors"):
        read_tensors(tmp_path / "w.safetensors")


def test_pytorch_archives_are_read_with_their_strides(tmp_path):
    found = read_tensors(archive(tmp_path / "w.pth", state_dict()))
    np.testing.assert_array_equal(found["w"], np.arange(6.0).reshape(2, 3))
    found = read_tensors(archive(tmp_path / "t.pt", state_dict(shape=(3, 2), strides=(1, 3))))
    np.testing.assert_array_equal(found["w"], np.arange(6.0).reshape(2, 3).T)
    found = read_tensors(archive(tmp_path / "part.pt", state_dict(offset=4, shape=(2,), strides=(1,))))
    np.testing.assert_array_equal(found["w"], [4.0, 5.0])


@pytest.mark.parametrize(
    "pickled",
    [
        state_dict(offset=1),
        state_dict(offset=-1),
        state_dict(shape=(7,), strides=(1,)),
        state_dict(shape=(2, 3), strides=(3, 2)),
        state_dict(shape=(2, 3), strides=(-3, 1)),
        state_dict(shape=(10**9,), strides=(0,)),
        state_dict(shape=(2, 3), strides=(3,)),
        state_dict(shape=("a", "b")),
        state_dict(kind="QInt8Storage"),
        state_dict(key="1"),
        state_dict()[:-9],
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({"epoch": 3}, protocol=2),
    ],
)
def test_damaged_pytorch_archives_are_refused(tmp_path, pickled):
    with pytest.raises(TensorFileError, match="w.pth"):
        read_tensors(archive(tmp_path / "w.pth", pickled))


def damaged(path, **entries):
    """An archive whose entry of weights says something else of itself: an encryption, a way of compression."""
    marks = {"flags": (6, 8), "method": (8, 10)}  # where a local and a central header have the field
    archive(path, state_dict())
    data = bytearray(path.read_bytes())
    for name, value in entries.items():
        for start, at in ((b"PK\3\4", marks[name][0]), (b"PK\1\2", marks[name][1])):
            place = data.find(start)
            while place >= 0:
                data[place + at : place + at + 2] = value.to_bytes(2, "little")
                place = data.find(start, place + 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"flags": 1}, "encrypted"),
        ({"method": zipfile.ZIP_DEFLATED}, "invalid"),
        ({"method": zipfile.ZIP_BZIP2}, "Invalid"),
        ({"method": zipfile.ZIP_LZMA}, "w.pth"),
        ({"method": 99}, "compression"),
    ],
)
def test_archives_that_are_packed_otherwise_are_refused_in_a_line(tmp_path, entries, message):
    with pytest.raises(TensorFileError, match=message) as error:
        read_tensors(damaged(tmp_path / "w.pth", **entries))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"w":' * 100_000, b"[]", b'{"w": 3}', b'{"w": {"dtype": []}}'])
def test_headers_that_are_no_table_are_refused(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(TensorFileError, match="w.safetensors"):
        read_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_a_changed_byte_never_gives_another_error(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    match suffix:
        case "pth":
            archive(path, state_dict())
        case "npz":
            np.savez_compressed(path, w=np.arange(6.0))
        case _:
            safetensors(path, {"w": ("F32", np.zeros((2, 3), np.float32))})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] = rng.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(TensorFileError), warnings.catch_warnings(action="ignore"):
            read_tensors(path)


class Placed:
    """Pickled as a thing of another package."""

    def __init__(self, global_name, state):
        self.global_name, self.state = global_name, state


def checkpoint(**entries) -> bytes:
    """A dictionary of plain values, state dictionaries (``None`` stands for one) and ``Placed`` things, pickled."""
    body = b"\x80\x02}"
    for key, value in entries.items():
        body += opcodes(key)
        if value is None:
            body += state_dict()[2:-1]
        elif isinstance(value, Placed):
            module, name = value.global_name.split()
            body += f"c{module}\n{name}\n".encode() + b")\x81" + opcodes(value.state) + b"b"
        else:
            body += opcodes(value)
        body += b"s"
    return body + b"."


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_checkpoints_of_trainers_are_read(tmp_path, key):
    """torchvision's reference scripts keep settings and counters beside the model."""
    args = Placed("argparse Namespace", {"lr": 0.02, "resume": ""})
    counter = Placed("collections Counter", {16: 1, 22: 1})
    path = archive(tmp_path / "model_25.pth", checkpoint(**{"epoch": 25, "args": args, "steps": counter, key: None}))
    assert read_tensors(path)["w"].shape == (2, 3)
    path.rename(tmp_path / "pytorch_model.bin")
    assert read_tensors(tmp_path / "pytorch_model.bin")["w"].shape == (2, 3)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    with pytest.raises(TensorFileError, match="not admitted"):
        read_tensors(archive(tmp_path / "w.pth", checkpoint(model=Placed("ultralytics.nn.tasks DetectionModel", {}))))
    with pytest.raises(TensorFileError, match="'epoch' is int"):
        read_tensors(archive(tmp_path / "w.pth", checkpoint(epoch=3, weights=None)))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrapped_models_are_taken_off(tmp_path, prefix):
    wrapped = {f"{prefix}{name}": ("F32", np.zeros(2, np.float32)) for name in ("a.weight", "module.bias")}
    assert list(read_tensors(safetensors(tmp_path / "w.safetensors", wrapped))) == ["a.weight", "module.bias"]
    part = {name: ("F32", np.zeros(2, np.float32)) for name in ("module.a", "b")}
    assert list(read_tensors(safetensors(tmp_path / "w.safetensors", part))) == ["module.a", "b"]


def test_files_in_parts_are_read_by_their_index(tmp_path):
    files = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name, file in zip("ab", files, strict=True):
        safetensors(tmp_path / file, {name: ("F32", np.full(2, ord(name), np.float32))})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict(zip("ab", files, strict=True))}))
    assert {name: array[0] for name, array in read_tensors(index).items()} == {"a": 97.0, "b": 98.0}
    with pytest.raises(TensorFileError, match="one of several parts; give the path of the .index.json"):
        read_tensors(tmp_path / files[0])
    for weight_map in ({"a": "../w.safetensors"}, {"a": "none.safetensors"}, {"a": index.name}, [], {"a": 3}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(TensorFileError, match="index.json"):
            read_tensors(index)


class _Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, __import__, getattr, np.load, pickle.loads], ids=lambda f: f.__name__
)
def test_code_in_pickles_is_refused_and_not_run(tmp_path, function, legacy):
    mark = tmp_path / "ran"
    argument = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')"
    pickled = pickle.dumps({"w": _Malicious(function, argument)}, protocol=2)
    path = tmp_path / "w.pth"
    path.write_bytes(pickled) if legacy else archive(path, pickled)
    with pytest.raises(TensorFileError, match="not admitted.*safetensors"):
        read_tensors(path)
    assert not mark.exists()


def test_a_file_cannot_change_how_the_next_is_read(tmp_path):
    """A pickle may set attributes of the things it is given."""
    attack = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}" + opcodes("__defaults__") + b"Nstb."
    with pytest.raises(TensorFileError):
        read_tensors(archive(tmp_path / "attack.pth", attack))
    attack = b"\x80\x02ccollections\nOrderedDict\n(N}" + opcodes("__setitem__") + b"Nstb."
    with pytest.raises(TensorFileError):
        read_tensors(archive(tmp_path / "attack.pth", attack))
    assert read_tensors(archive(tmp_path / "w.pth", state_dict()))["w"].shape == (2, 3)


def bomb(path):
    """An archive of a few kilobytes in which 4 values are 80 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("model/data.pkl", state_dict(shape=(4,), strides=(1,)))
        with file.open("model/data/0", "w", force_zip64=True) as member:
            for _ in range(10):
                member.write(bytes(1 << 23))
    return path


def test_a_file_that_would_grow_without_bounds_is_refused(tmp_path):
    """Before any of it is read."""
    for suffix in (".pth", ".npz"):
        with pytest.raises(TensorFileError, match="would become 83,88.*safetensors"):
            read_tensors(bomb(tmp_path / f"w{suffix}"))
    many = b"\x80\x02ccollections\nOrderedDict\n)R("  # the same values under many names
    one = state_dict(shape=(2**20,), strides=(1,))[len(many) :]
    with pytest.raises(TensorFileError, match="would become"):
        repeated = b"".join(opcodes(f"w{k}") + one[len(opcodes("w")) - 1 : -2] for k in range(40))
        read_tensors(archive(tmp_path / "many.pth", many + repeated + b"u.", bytes(4 * 2**20)))
    legacy = b"".join(
        pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    legacy += state_dict() + pickle.dumps(["0"], protocol=2) + (2**40).to_bytes(8, "little")
    (tmp_path / "legacy.pth").write_bytes(legacy)
    with pytest.raises(TensorFileError, match="ends within its values"):
        read_tensors(tmp_path / "legacy.pth")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(TensorFileError, match="use .safetensors or .pth"):
        read_tensors(tmp_path / "w.onnx")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
        file.writestr("readme", "hello")
    with pytest.raises(TensorFileError, match="torch.save"):
        read_tensors(tmp_path / "w.pth")


# Fitting a model


def small():
    return ResNetConfig(depths=(1, 1), widths=(4, 8), bottleneck=False, stem_width=4, outputs=(1, 2))


def named_tensors(seed=0):
    """What torchvision would call the small network's weights."""
    rng, tensors = np.random.default_rng(seed), {}

    def layer(name, norm, outputs, inputs, kernel):
        tensors[f"{name}.weight"] = rng.normal(size=(outputs, inputs, kernel, kernel)).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = rng.uniform(0.5, 1.0, outputs).astype(np.float32)
        tensors[f"{norm}.num_batches_tracked"] = np.array(3)

    layer("conv1", "bn1", 4, 3, 7)
    layer("layer1.0.conv1", "layer1.0.bn1", 4, 4, 3)
    layer("layer1.0.conv2", "layer1.0.bn2", 4, 4, 3)
    layer("layer2.0.conv1", "layer2.0.bn1", 8, 4, 3)
    layer("layer2.0.conv2", "layer2.0.bn2", 8, 8, 3)
    layer("layer2.0.downsample.0", "layer2.0.downsample.1", 8, 4, 1)
    tensors["fc.weight"], tensors["fc.bias"] = np.zeros((10, 8), np.float32), np.zeros(10, np.float32)
    return tensors


def write(path, tensors):
    names = {"float32": "F32", "int64": "I64", "float16": "F16"}
    return safetensors(path, {name: (names[array.dtype.name], array) for name, array in tensors.items()})


def test_every_weight_arrives(tmp_path):
    backbone = ResNet(small(), rngs=nnx.Rngs(0))
    tensors = named_tensors()
    weights.load_resnet(backbone, write(tmp_path / "w.safetensors", tensors))
    kernel = backbone.stages[1][0].convs[0].kernel[...]
    np.testing.assert_array_equal(kernel, tensors["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
    norm = backbone.stages[1][0].shortcut_norm
    for ours, their in (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
        np.testing.assert_array_equal(getattr(norm, ours)[...], tensors[f"layer2.0.downsample.1.{their}"])
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(backbone)))
    left_out = [name for name in tensors if name.startswith("fc.") or name.endswith("tracked")]
    assert total == sum(array.size for name, array in tensors.items() if name not in left_out)


def test_an_abstract_model_is_filled_and_half_precision_becomes_float32(tmp_path):
    backbone = nnx.eval_shape(lambda: ResNet(small(), rngs=nnx.Rngs(0)))
    tensors = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in named_tensors().items()}
    weights.load_resnet(backbone, write(tmp_path / "w.safetensors", tensors))
    features = backbone(jnp.ones((1, 32, 32, 3)), Extent.of(np.float32([[32, 32]])))
    assert features[-1].dtype == jnp.float32 and np.isfinite(features[-1]).all()


def test_all_mismatches_are_told_at_once_and_nothing_is_loaded(tmp_path):
    backbone = ResNet(small(), rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.state(backbone))
    tensors = named_tensors()
    del tensors["layer1.0.bn2.running_var"]
    tensors["layer2.0.conv1.weight"] = np.zeros((8, 4, 5, 5), np.float32)
    tensors["bn1.bias"] = np.zeros(5, np.float32)
    tensors["conv1.weight"] = np.zeros((4, 147), np.float32)
    tensors["layer3.0.conv1.weight"] = np.zeros((8, 8, 3, 3), np.float32)
    with pytest.raises(weights.WeightsError) as error:
        weights.load_resnet(backbone, write(tmp_path / "w.safetensors", tensors))
    told = str(error.value)
    assert "w.safetensors" in told and "5 weights do not fit ResNet" in told
    for line in (
        "missing: layer1.0.bn2.running_var (for stages/0/0/norms/1/var)",
        "wrong shape: layer2.0.conv1.weight is (8, 4, 5, 5), stages/1/0/convs/0/kernel needs (3, 3, 4, 8)",
        "wrong shape: bn1.bias is (5,), stem_norm/bias needs (4,)",
        "wrong shape: conv1.weight is (4, 147)",
        "unexpected: layer3.0.conv1.weight",
    ):
        assert line in told, told
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, nnx.state(backbone)), before)


FASTER = ("roi_heads.box_predictor.cls_score.weight", "backbone.body.layer1.0.conv1.weight")
DENSE = "head.classification_head.cls_logits.weight"
FCOS_ONLY = "head.regression_head.bbox_ctrness.weight"


@pytest.mark.parametrize(
    ("load", "build", "names", "message"),
    [
        ("faster_rcnn", FasterRCNN, (*FASTER, "roi_heads.box_head.0.0.weight"), "of torchvision's fasterrcnn_.*_v2"),
        ("faster_rcnn", FasterRCNN, (*FASTER, "roi_heads.mask_predictor.mask_fcn_logits.weight"), "Mask R-CNN, not of"),
        ("faster_rcnn", FasterRCNN, (DENSE,), "of torchvision's RetinaNet, not of torchvision's Faster R-CNN; get"),
        ("faster_rcnn", FasterRCNN, FASTER, "its detector has 7 labels, the config's 90: set"),
        ("fcos", FCOS, (DENSE,), "of torchvision's RetinaNet, not of torchvision's FCOS"),
        ("fcos", FCOS, ("bbox_head.conv_cls.weight",), "of a detector of MMDetection"),
        ("fcos", FCOS, (DENSE, FCOS_ONLY), "its detector has 7 labels, the config's 90: set"),
        ("resnet", ResNet, ("conv1.0.weight", "layer1.0.conv1.weight"), "deep stem .resnet50d.*not of ResNet-18"),
        ("resnet", ResNet, FASTER, "of torchvision's Faster R-CNN, not of ResNet-18"),
    ],
)
def test_weights_of_another_model_are_named(tmp_path, load, build, names, message):
    """In one line, instead of hundreds of names."""
    config = {FasterRCNN: fasterrcnn_resnet50_fpn, FCOS: fcos_resnet50_fpn, ResNet: resnet18}[build]()
    path = write(tmp_path / "w.safetensors", {name: np.zeros((8, 4, 3, 3), np.float32) for name in names})
    with pytest.raises(weights.WeightsError, match=message) as error:
        getattr(weights, f"load_{load}")(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))), path)
    assert len(str(error.value).splitlines()) == 1


def test_the_depth_of_a_resnet_is_told(tmp_path):
    tensors = {
        f"layer{s}.{b}.conv1.weight": np.zeros(1, np.float32) for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)
    }
    path = write(tmp_path / "w.safetensors", tensors | {"conv1.weight": np.zeros(1, np.float32)})
    with pytest.raises(weights.WeightsError, match="of ResNet-34, not of ResNet-18"):
        weights.load_resnet(nnx.eval_shape(lambda: ResNet(resnet18(), rngs=nnx.Rngs(0))), path)


def test_a_backbone_with_group_norms_has_no_place_for_statistics(tmp_path):
    backbone = nnx.eval_shape(lambda: ResNet(resnet18(norm="gn"), rngs=nnx.Rngs(0)))
    with pytest.raises(weights.WeightsError, match="unexpected: bn1.running_mean"):
        weights.load_resnet(backbone, write(tmp_path / "w.safetensors", named_tensors()))


@pytest.mark.parametrize(
    ("load", "build", "name"),
    [
        (weights.load_resnet, lambda: ResNet(small(), rngs=nnx.Rngs(0)), "resnet50-0676ba61.pth"),
        (
            weights.load_faster_rcnn,
            lambda: FasterRCNN(fasterrcnn_resnet50_fpn(), rngs=nnx.Rngs(0)),
            "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        ),
        (
            weights.load_fcos,
            lambda: FCOS(fcos_resnet50_fpn(), rngs=nnx.Rngs(0)),
            "fcos_resnet50_fpn_coco-99b0c9b7.pth",
        ),
    ],
)
def test_a_missing_file_says_where_weights_are(tmp_path, load, build, name):
    with pytest.raises(FileNotFoundError, match=f"no weights at .*nowhere.pth; get them from https.*{name}"):
        load(nnx.eval_shape(build), tmp_path / "nowhere.pth")
