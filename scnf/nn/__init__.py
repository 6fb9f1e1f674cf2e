"""Networks for couplings, encoders and decoders; this package computes no probabilities."""

from scnf.nn.couplings import (
    IMAGE_NETWORKS,
    MLP,
    VECTOR_NETWORKS,
    ConvNet,
    GlobalConvNet,
    NetworkFactory,
    register_network,
)
from scnf.nn.encoders import ConvDecoder, Encoder, Features, ResidualFeatures, head_inputs

__all__ = [
    "IMAGE_NETWORKS",
    "MLP",
    "VECTOR_NETWORKS",
    "ConvDecoder",
    "ConvNet",
    "Encoder",
    "Features",
    "GlobalConvNet",
    "NetworkFactory",
    "ResidualFeatures",
    "head_inputs",
    "register_network",
]
