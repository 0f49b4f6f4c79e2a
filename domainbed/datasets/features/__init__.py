"""Features of images, computed once by a frozen backbone."""

from domainbed.datasets.features.extraction import StoredFeatures, open_features
from domainbed.datasets.features.extractor import FeatureExtractor
from domainbed.datasets.features.text import TextHead, open_text_head, reads_text

__all__ = [
    "FeatureExtractor",
    "StoredFeatures",
    "TextHead",
    "open_features",
    "open_text_head",
    "reads_text",
]
