"""The generator of pathways: GEN-CNP and its three parts."""

from pathways.generator.decoder import PathwayDecoders
from pathways.generator.distiller import PathwayDistillation
from pathways.generator.embedder import FeatureEmbedders
from pathways.generator.gen_cnp import GenCNP

__all__ = ["FeatureEmbedders", "GenCNP", "PathwayDecoders", "PathwayDistillation"]
