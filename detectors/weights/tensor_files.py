"""Reads named tensors from .safetensors and .npz, and from PyTorch's .pth and .pt without running any code in them.

PyTorch's files are pickles, which can call whatever they name.  Here they may name tensors, their storages, the
dictionary that holds them, and a few harmless things of checkpoints, which are read over; anything else is refused.
"""

import collections
import errno
import io
import json
import lzma
import math
import os
import pathlib
import pickle
import re
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cse_jax.errors import UserError

_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}
_STORAGES = {  # by PyTorch's names
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}
WITHIN = ("state_dict", "model", "model_state_dict")  # where checkpoints keep the state dictionary
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_INDEX = ".index.json"
_READ_OVER = {("argparse", "Namespace"), ("collections", "Counter"), ("torch", "Size"), ("torch", "device")}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # marks PyTorch's files from before they were zip archives
_UNPACKED = 4  # times the size of a file may its contents be: numbers of weights hardly compress
_UNPACKED_BYTES = 1 << 26  # or so much
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    OverflowError,
    RuntimeError,  # an encrypted archive, or nesting that never ends
    MemoryError,  # of a size that a file claims
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


class TensorFileError(UserError, ValueError):
    """A file that is damaged, of another format, or holds more than tensors."""


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a file, by name.

    Args:
      path: a .safetensors, .pth, .pt, .bin or .npz file, or the .index.json of a file in parts.  A checkpoint that
        holds the state dictionary under one of ``WITHIN``, and names that all begin with one of ``PREFIXES``, are read
        as the dictionary itself.

    Raises:
      FileNotFoundError: there is no such file.
      TensorFileError: it has none of these formats, is damaged, or holds anything but named tensors.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin", ".npz") and not path.name.endswith(_INDEX):
        raise TensorFileError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use .safetensors or .pth")
    if re.search(r"-\d{5}-of-\d{5}$", path.stem):
        raise TensorFileError(f"{path}: one of several parts; give the path of the {_INDEX} file beside it")
    return _without_prefix(_read(path))


def _without_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names as they were before a model was wrapped, for several devices or for compilation."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _without_prefix({name.removeprefix(prefix): array for name, array in tensors.items()})
    return tensors


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        if path.name.endswith(_INDEX):
            return _read_parts(path)
        if path.suffix == ".npz":
            return _read_npz(path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except TensorFileError:
        raise
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # what archives say of bad places
            raise
        raise TensorFileError(
            f"{path}: not a file of plain tensors ({error}); save the model's state_dict as .safetensors"
        ) from error


def _read_parts(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of all parts, which lie beside the index that names them."""
    tensors = {}
    for name in sorted(set(json.loads(path.read_text())["weight_map"].values())):
        if pathlib.PurePath(name).name != name or not (path.parent / name).is_file():
            raise TensorFileError(f"{path}: names the part {name!r}, which is no file beside it")
        tensors |= _read(path.parent / name)
    return tensors


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        _refuse_larger(path, sum(member.file_size for member in archive.infolist()))
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _refuse_larger(path: pathlib.Path, size: int) -> None:
    """Refuses a file whose contents would be far larger than it is."""
    if size > max(_UNPACKED * path.stat().st_size, _UNPACKED_BYTES):
        raise TensorFileError(
            f"{path}: its {path.stat().st_size:,} bytes would become {size:,}; save the state_dict as .safetensors"
        )


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise TensorFileError(f"{path}: ends within its header; download it again")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{path}: its header is not JSON; is it a .safetensors file?") from error
    body, tensors = memoryview(data)[8 + length :], {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS:
            known = ", ".join(_SAFETENSORS)
            raise TensorFileError(f"{path}: {name} is {entry['dtype']}; known are {known}")
        dtype, shape, (start, stop) = np.dtype(_SAFETENSORS[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        if not 0 <= start <= stop <= len(body) or stop - start != math.prod(shape) * dtype.itemsize:
            raise TensorFileError(
                f"{path}: {name} of shape {shape} has bytes {start} to {stop} of {len(body)}; download it again"
            )
        tensors[name] = np.frombuffer(body[start:stop], dtype).reshape(shape)
    return tensors


class _Storage(NamedTuple):
    """Where a tensor's values lie."""

    kind: str  # one of _STORAGES
    key: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_STORAGES[self.kind])


class _Tensor(NamedTuple):
    """A tensor whose values have not been read yet; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Makes descriptions of tensors and dictionaries, and nothing else."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file)

        # A new class for each file, because a pickle may set attributes of whatever it is given.
        class Names(collections.OrderedDict):
            """A state dictionary; PyTorch sets its version numbers as an attribute of it."""

        class Left(dict):
            """Stands for what else a checkpoint holds: settings, the state of schedules."""

            def __new__(cls, *_):
                return super().__new__(cls)

            def __init__(self, *_) -> None:
                super().__init__()

        self.storages: dict[str, _Storage] = {}

        def describe(storage, offset, shape, strides, *_) -> _Tensor:
            return _Tensor(storage, offset, tuple(shape), tuple(strides))

        self._admitted = {
            ("collections", "OrderedDict"): Names,
            ("torch._utils", "_rebuild_tensor_v2"): describe,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        self._admitted |= {("torch", name): name for name in _STORAGES} | dict.fromkeys(_READ_OVER, Left)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")
        return self._admitted[module, name]

    def persistent_load(self, reference: tuple) -> _Storage:
        what, kind, key = reference[:3]
        if what != "storage" or kind not in _STORAGES or (len(reference) > 5 and reference[5] is not None):
            raise pickle.UnpicklingError(f"it refers to {reference!r}, which is no storage of a known type")
        return self.storages.setdefault(str(key), _Storage(kind, str(key)))


def _read_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise TensorFileError(f"{path}: has no data.pkl; is it a file of torch.save?")
        root = roots[0]
        _refuse_larger(path, sum(member.file_size for member in archive.infolist()))
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise TensorFileError(f"{path}: written on a big-endian machine; save it as .safetensors")
        tensors = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        return _fill(path, tensors, lambda key: archive.read(f"{root}data/{key}"))


def _read_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        magic, _, system = (_Unpickler(file).load() for _ in range(3))
        unpickler = _Unpickler(file)
        tensors, keys = unpickler.load(), _Unpickler(file).load()
        if magic != _LEGACY_MAGIC or not system["little_endian"]:
            raise TensorFileError(f"{path}: not a file that torch.save wrote on a usual machine")
        storages = {}
        for key in keys:
            size = int.from_bytes(file.read(8), "little") * unpickler.storages[key].dtype.itemsize
            if size > path.stat().st_size:
                raise TensorFileError(f"{path}: ends within its values; download it again")
            storages[key] = file.read(size)
    return _fill(path, tensors, storages.__getitem__)


def _fill(path: pathlib.Path, tensors: Any, storage_bytes) -> dict[str, np.ndarray]:
    """Arrays for described tensors; each must lie within its storage."""
    if not isinstance(tensors, dict):
        raise TensorFileError(f"{path}: holds {type(tensors).__name__} instead of named tensors; save a state_dict")
    if not any(isinstance(value, _Tensor) for value in tensors.values()):
        tensors = next((tensors[key] for key in WITHIN if isinstance(tensors.get(key), dict)), tensors)
    storages, filled = {}, {}
    _refuse_larger(
        path, sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values() if isinstance(t, _Tensor))
    )
    for name, tensor in tensors.items():
        if not isinstance(tensor, _Tensor):
            raise TensorFileError(f"{path}: {name!r} is {type(tensor).__name__}, no tensor; save the state_dict alone")
        storage, offset, shape, strides = tensor
        key, dtype = storage.key, storage.dtype
        if key not in storages:
            storages[key] = np.frombuffer(storage_bytes(key), dtype)
        size = storages[key].size
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or math.prod(shape) > size or (0 not in shape and last >= size):
            raise TensorFileError(f"{path}: {name} reaches beyond the {size} values that it is part of")
        view = np.lib.stride_tricks.as_strided(
            storages[key][offset:], shape, [step * dtype.itemsize for step in strides], writeable=False
        )
        filled[name] = view.copy()
    return filled
