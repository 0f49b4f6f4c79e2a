"""Features of images, computed once by a backbone that stays as it is."""

from domainbed.datasets.features.extraction import Images, open_features
from domainbed.datasets.features.extractor import FeatureExtractor
from domainbed.datasets.features.stored import StoredFeatures
from domainbed.datasets.features.text import TextHead, open_text_head, reads_text

__all__ = [
    "FeatureExtractor",
    "Images",
    "StoredFeatures",
    "TextHead",
    "open_features",
    "open_text_head",
    "reads_text",
]
