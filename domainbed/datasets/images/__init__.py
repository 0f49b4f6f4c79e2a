"""Natural images: reading them, their published preprocessing, and packed copies of them."""
