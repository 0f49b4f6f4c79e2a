"""Small folders of images, and smooth images, for tests."""

from __future__ import annotations

import numpy as np
from PIL import Image


def smooth_pixels(height, width, seed=0):
    """(height, width, 3) uint8 with edges, gradients, greys and saturated colours."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 256, (6, 8, 3), dtype=np.uint8)
    coarse[0] = coarse[0].mean(axis=1, keepdims=True)
    pixels = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(pixels)


def write_folder(root, sizes=((40, 50),), domains="abc", per_class=4, suffix="png"):
    """`root/<domain>/<class>/<i>`; the images take the given (height, width) in turn."""
    number = 0
    for domain in domains:
        for label in ("cat", "dog"):
            folder = root / domain / label
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = smooth_pixels(*sizes[number % len(sizes)], seed=number)
                Image.fromarray(pixels).save(folder / f"{i}.{suffix}")
                number += 1
    return root
