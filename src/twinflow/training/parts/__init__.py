"""The parts of a pipeline that are trained before its transformer: text encoders and autoencoder.

Each part looks to the trainer like a pipeline: it has a ``network`` to train, says what a batch is encoded to,
and saves the whole stock pipeline. Each brings its own objective.
"""

from twinflow.training.parts.autoencoder import AutoencoderPart, Reconstruction
from twinflow.training.parts.text_encoders import CaptionFacts, CaptionReading, TextEncodersPart

__all__ = ["AutoencoderPart", "CaptionFacts", "CaptionReading", "Reconstruction", "TextEncodersPart"]
