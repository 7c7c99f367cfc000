"""What lies in a folder of images."""

import os
from pathlib import Path
from typing import List, Union

#: Ends of files that count as images, in lower case.
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def find_images(folder: Union[str, Path]) -> List[str]:
    """Paths below a folder of all images in it, sorted; hidden files and folders do not count."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        images = (f for f in files if f.lower().endswith(IMAGE_SUFFIXES) and f[0] != '.')
        found += [os.path.relpath(os.path.join(place, file), folder) for file in images]
    return sorted(path.replace(os.sep, '/') for path in found)
