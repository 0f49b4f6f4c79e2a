"""Features of images, computed once by a backbone that stays as it is."""

from domainbed.features.extraction import Images, open_features
from domainbed.features.extractor import FeatureExtractor
from domainbed.features.stored import StoredFeatures

__all__ = ["FeatureExtractor", "Images", "StoredFeatures", "open_features"]
