"""The networks that can be trained: one table of backbones, one function that puts a head on them.

A model takes grey levels and answers with a logit; replication to three channels and the backbone's normalisation
are layers of the graph. Every layer of the backbone stands flat in the one functional model under the name it has
in `keras.applications`, so that weights are found by layer name:

    image -> grey_to_rgb -> normalise -> (backbone) -> features -> head -> logit

To add a backbone, add an entry to `BACKBONES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pneumo_edge.errors import UsageError

if TYPE_CHECKING:
    import keras

HEADS = ("local", "gap", "flatten")

FEATURES = "features"
"""Name of the layer whose output is the final feature map, float of shape (N, S / 32, S / 32, C)."""

LOCAL_LOGIT = "local_logit"
"""Name of the layer of the `local` head whose output is the map of local evidence, (N, S / 16, S / 16, 1)."""

LOCAL_LAYERS = ("local_coarse", "local_fine", "local_depthwise", "local_pointwise")
"""The layers with weights between the backbone and that map."""

_LOCAL_WIDTH = 96
_SHARPNESS = 2.0


@dataclass(frozen=True)
class Backbone:
    """Everything that training and export have to know about a network.

    Attributes:
        name: The key in `BACKBONES`.
        build: Normalised image (N, S, S, 3) -> feature map (N, S / 32, S / 32, C), both Keras tensors.
        application: Function of `keras.applications` that its ImageNet weights come from; None for the package of
            EfficientNet-Lite0.
        scale: Normalisation of grey levels g in 0..255, replicated to three channels: g * scale + offset.
        offset: One number per channel, in the channel order of the stored kernels (BGR for resnet50 and vgg16).
        default_size: Side of the input in pixels where the user names none.
        default_epochs: Passes over the films where the user names none: enough for a few thousand films.
        learning_rate: Peak rate of AdamW for fine-tuning all layers that are not frozen.
        frozen_layers: Regular expression for whole layer names that keep their pretrained weights; empty for none.
        fine_layer: Layer whose output, at a sixteenth of the image's side, the head `local` looks at beside the
            features.
        novelty_layers: Two layers whose averaged activations tell a chest film from other pictures, both in the upper
            middle: the last ones know little but the two classes, the first ones see exposure, not content.
        float_layers: Regular expression for names of layers that stay float in int8 files; empty for none. The
            first layers hold less than a hundredth of the weights and, in the light networks, cause most of the
            error.
        licence: Licence of the ImageNet weights, in one sentence.
    """

    name: str
    build: Callable[[keras.KerasTensor], keras.KerasTensor]
    application: str | None
    scale: float
    offset: tuple[float, float, float]
    default_size: int
    default_epochs: int
    learning_rate: float
    frozen_layers: str
    fine_layer: str
    novelty_layers: tuple[str, str]
    float_layers: str
    licence: str

    @property
    def light(self) -> bool:
        """Whether it is one of the small networks for devices."""
        return not self.frozen_layers


class _Stage(NamedTuple):
    kernel: int
    filters: int
    strides: int
    expansion: int
    repeats: int


# EfficientNet-B0, table 1 of Tan and Le, "EfficientNet" (ICML 2019). Lite0 drops squeeze-and-excitation and takes ReLU6
# for swish; stem (32) and head (1280) are the same at every width of the Lite family.
_LITE0_STAGES = (
    _Stage(kernel=3, filters=16, strides=1, expansion=1, repeats=1),
    _Stage(kernel=3, filters=24, strides=2, expansion=6, repeats=2),
    _Stage(kernel=5, filters=40, strides=2, expansion=6, repeats=2),
    _Stage(kernel=3, filters=80, strides=2, expansion=6, repeats=3),
    _Stage(kernel=5, filters=112, strides=1, expansion=6, repeats=3),
    _Stage(kernel=5, filters=192, strides=2, expansion=6, repeats=4),
    _Stage(kernel=3, filters=320, strides=1, expansion=6, repeats=1),
)


def lite0_blocks() -> Iterator[tuple[str, _Stage, int]]:
    """Yields the blocks of EfficientNet-Lite0 in order: name ("block1a"), stage, index within the stage."""
    for number, stage in enumerate(_LITE0_STAGES, start=1):
        for repeat in range(stage.repeats):
            yield f"block{number}{'abcd'[repeat]}", stage, repeat


def _efficientnet_lite0(image: keras.KerasTensor) -> keras.KerasTensor:
    """EfficientNet-Lite0 without its classifier: (N, S, S, 3) -> (N, S / 32, S / 32, 1280)."""
    from keras import layers

    initializer = {"class_name": "VarianceScaling", "config": {"scale": 2.0, "mode": "fan_out"}}

    def conv(x: keras.KerasTensor, filters: int, kernel: int, strides: int, name: str) -> keras.KerasTensor:
        return layers.Conv2D(
            filters, kernel, strides, padding="same", use_bias=False, kernel_initializer=initializer, name=name
        )(x)

    def norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.BatchNormalization(epsilon=1e-3, name=name)(x)

    def relu6(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.ReLU(6.0, name=name)(x)

    x = relu6(norm(conv(image, 32, 3, 2, "stem_conv"), "stem_bn"), "stem_activation")
    for name, stage, repeat in lite0_blocks():
        block_input = x
        if stage.expansion > 1:
            x = conv(x, stage.expansion * x.shape[-1], 1, 1, f"{name}_expand_conv")
            x = relu6(norm(x, f"{name}_expand_bn"), f"{name}_expand_activation")
        x = layers.DepthwiseConv2D(
            stage.kernel,
            stage.strides if repeat == 0 else 1,
            padding="same",
            use_bias=False,
            depthwise_initializer=initializer,
            name=f"{name}_dwconv",
        )(x)
        x = relu6(norm(x, f"{name}_bn"), f"{name}_activation")
        x = norm(conv(x, stage.filters, 1, 1, f"{name}_project_conv"), f"{name}_project_bn")
        if repeat > 0:
            x = layers.Add(name=f"{name}_add")([x, block_input])
    return relu6(norm(conv(x, 1280, 1, 1, "top_conv"), "top_bn"), "top_activation")


def _application(name: str) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """Makes the `build` of a network that `keras.applications` has: its layers, without classifier or weights."""

    def build(image: keras.KerasTensor) -> keras.KerasTensor:
        import keras

        return getattr(keras.applications, name)(include_top=False, weights=None, input_tensor=image).output

    return build


# "caffe" mode of keras.applications: channel means of ImageNet in BGR order, no scaling. A grey film has R = G = B, so
# only the means need the order; the kernels stay as they are stored.
_CAFFE_OFFSET = (-103.939, -116.779, -123.68)

# Rates: the light networks bear 3e-4 in all layers at once. The deeper ones have more to forget and overfit sooner;
# VGG16 has no batch-norm to keep its activations in range after a large step.
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="efficientnet_lite0",
            build=_efficientnet_lite0,
            application=None,
            scale=1 / 128,
            offset=(-127 / 128, -127 / 128, -127 / 128),
            default_size=160,
            default_epochs=12,
            learning_rate=3e-4,
            frozen_layers="",
            fine_layer="block5c_add",
            novelty_layers=("block5c_add", "block6d_add"),
            float_layers=r"stem_.*|block[12].*",
            licence="EfficientNet-Lite0 ImageNet weights by Google, Apache-2.0.",
        ),
        Backbone(
            name="mobilenetv2",
            build=_application("MobileNetV2"),
            application="MobileNetV2",
            scale=1 / 127.5,
            offset=(-1.0, -1.0, -1.0),
            default_size=160,
            default_epochs=12,
            learning_rate=3e-4,
            frozen_layers="",
            fine_layer="block_12_add",
            novelty_layers=("block_12_add", "block_15_add"),
            float_layers=r"Conv1.*|bn_Conv1|expanded_conv_.*",
            licence="MobileNetV2 ImageNet weights by Google, Apache-2.0.",
        ),
        Backbone(
            name="resnet50",
            build=_application("ResNet50"),
            application="ResNet50",
            scale=1.0,
            offset=_CAFFE_OFFSET,
            default_size=224,
            default_epochs=8,
            learning_rate=1e-4,
            frozen_layers=r"conv[1-4]_.*",
            fine_layer="conv4_block6_out",
            novelty_layers=("conv3_block4_out", "conv4_block6_out"),
            float_layers=r"conv1_.*",
            licence="ResNet-50 ImageNet weights by Kaiming He et al., MIT.",
        ),
        Backbone(
            name="vgg16",
            build=_application("VGG16"),
            application="VGG16",
            scale=1.0,
            offset=_CAFFE_OFFSET,
            default_size=224,
            default_epochs=8,
            learning_rate=5e-5,
            frozen_layers=r"block[1-3]_.*",
            fine_layer="block5_conv3",
            novelty_layers=("block4_pool", "block5_pool"),
            float_layers="block1_conv1",
            licence="VGG16 ImageNet weights by the Visual Geometry Group, University of Oxford, CC BY 4.0.",
        ),
    )
}


def find_backbone(name: str) -> Backbone:
    """Returns a backbone by its name.

    Raises:
        UsageError: There is none of that name; the message lists those that there are.
    """
    if name not in BACKBONES:
        raise UsageError(f"there is no backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def check_architecture(backbone: str, head: str, size: int) -> Backbone:
    """Returns a backbone, and checks that it goes with a head and a size; loads nothing.

    Raises:
        UsageError: Unknown backbone or head, or a size that the networks cannot take.
    """
    entry = find_backbone(backbone)
    if head not in HEADS:
        raise UsageError(f"there is no head {head!r}: choose one of {', '.join(HEADS)}")
    if size < 32 or size % 32:
        # Other sizes would run, but rounding at an odd size shifts the cells of the feature map against the image,
        # and the heatmap with them.
        nearest = max(32, 32 * round(size / 32))
        raise UsageError(
            f"the networks halve the image five times, so --size must be a multiple of 32 pixels, not {size}: "
            f"give {nearest}"
        )
    return entry


def build_model(backbone: str, head: str, size: int, *, dropout: float = 0.3) -> keras.Model:
    """Builds a network with random weights.

    Input `image`: float32 (N, size, size, 1), grey levels 0..255. Output `logit`: float32 (N, 1), positive for
    pneumonia, no sigmoid. Both stay float32 under mixed precision. The final feature map is the output of the layer
    `features`.

    Args:
        backbone: A key of `BACKBONES`.
        head: `local`: a map of local logits at a sixteenth of the image's side, pooled to the film's logit;
            `gap`: global average pooling and one Dense; `flatten`: a hidden layer of 256 on the whole map.
        size: Side of the image in pixels, a multiple of 32.
        dropout: Rate before the last layer, 0 <= dropout < 1.

    Raises:
        UsageError: Unknown backbone or head, or a size that the networks cannot take.
    """
    entry = check_architecture(backbone, head, size)

    import keras
    from keras import layers

    # float32 whatever the precision of the rest: bfloat16 has no room for the fraction of a grey level above 128.
    image = layers.Input((size, size, 1), dtype="float32", name="image")
    x = layers.Concatenate(dtype="float32", name="grey_to_rgb")([image, image, image])
    x = layers.Rescaling(entry.scale, list(entry.offset), dtype="float32", name="normalise")(x)
    features = entry.build(x)
    x = layers.Identity(name=FEATURES)(features)
    if head == "local":
        fine = keras.Model(image, features).get_layer(entry.fine_layer).output
        return keras.Model(image, _local_head(x, fine, dropout), name=f"{backbone}_{head}")
    if head == "gap":
        x = layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)
    else:
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(256, activation="relu", name="hidden")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    logit = layers.Dense(1, dtype="float32", name="logit")(x)
    return keras.Model(image, logit, name=f"{backbone}_{head}")


def _local_head(features: keras.KerasTensor, fine: keras.KerasTensor, dropout: float) -> keras.KerasTensor:
    """Puts a map of local logits on a backbone, and pools it to the film's logit.

    What the top of the network knows (5 x 5 for a film of 160 pixels) is enlarged and joined with what it saw at twice
    that resolution; each cell of the map then looks at its neighbours. The film's logit is a line in the map's soft
    maximum: one strong cell is enough, and several weigh more. Pinheiro and Collobert, "From image-level to
    pixel-level labeling with convolutional networks" (CVPR 2015).
    """
    from keras import layers

    coarse = layers.Conv2D(_LOCAL_WIDTH, 1, name="local_coarse")(features)
    coarse = layers.UpSampling2D(2, interpolation="bilinear", name="local_enlarged")(coarse)
    fine = layers.Conv2D(_LOCAL_WIDTH, 1, name="local_fine")(fine)
    x = layers.Concatenate(name="local_joined")([coarse, fine])
    x = layers.ReLU(6.0, name="local_joined_activation")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="local_depthwise")(x)
    x = layers.Conv2D(_LOCAL_WIDTH, 1, name="local_pointwise")(x)
    x = layers.ReLU(6.0, name="local_activation")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Conv2D(1, 1, dtype="float32", name=LOCAL_LOGIT)(x)
    x = _log_mean_exp(x, _SHARPNESS)
    return layers.Dense(1, kernel_initializer="ones", dtype="float32", name="logit")(x)


def _log_mean_exp(x: keras.KerasTensor, sharpness: float) -> keras.KerasTensor:
    """Pools a map to one number, (N, h, w, 1) -> (N, 1): log(mean(exp(r x))) / r.

    Between the mean (r -> 0) and the maximum (r -> infinity), whatever the size of the map. Operations of Keras alone,
    so that the file of a model needs nothing of ours.
    """
    from keras import ops

    # The largest value is taken out, so that no exponential overflows.
    peak = ops.max(x, axis=(1, 2, 3), keepdims=True)
    mean = ops.mean(ops.exp((x - peak) * sharpness), axis=(1, 2, 3), keepdims=True)
    return ops.reshape(peak + ops.log(mean) / sharpness, (-1, 1))


def backbone_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Lists the layers of a model from `build_model` in front of `features`, from input to output."""
    names = [layer.name for layer in model.layers]
    return list(model.layers[: names.index(FEATURES)])


def freeze(model: keras.Model, backbone: str, loaded: Collection[str]) -> None:
    """Sets which layers of the backbone learn, before the model is compiled.

    Layers with pretrained weights are frozen where they match `frozen_layers` of the backbone, and wherever they are
    batch-norm. Layers that start from random all learn; their batch-norm gets a momentum of 0.9.

    Args:
        model: From `build_model`.
        backbone: A key of `BACKBONES`, the one the model was built with.
        loaded: Names of the layers that have pretrained weights (`LoadReport.loaded`).
    """
    from keras.layers import BatchNormalization

    pattern = find_backbone(backbone).frozen_layers
    for layer in backbone_layers(model):
        pretrained = layer.name in loaded
        is_norm = isinstance(layer, BatchNormalization)
        # Pretrained batch-norm stays at the statistics it was stored with. Fine-tuning takes a few hundred steps, in
        # which moving statistics lag behind the weights (MobileNetV2 has momentum 0.999), and averaged weights have
        # none that belong to them: evaluated so, the network answers one class for every film. Frozen, it computes
        # while training what the exported model computes.
        layer.trainable = not (pretrained and (is_norm or re.fullmatch(pattern, layer.name)))
        # Random batch-norm has no statistics yet. It has to learn them, and soon enough for a short training.
        if is_norm and not pretrained:
            layer.momentum = 0.9
