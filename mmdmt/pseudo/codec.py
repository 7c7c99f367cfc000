"""Bytes of one pseudo-label map: classes and confidences.

Both are packed into 16 bits per pixel. Only the classes that occur in an image are numbered, so an
image of up to 8 classes has 8192 confidence steps, whatever the dataset. Of these numbers the
second difference over rows and columns is stored: confidence is smooth, because logits are
up-sampled, so the differences are nearly all tiny and deflate well (0.5 to 0.8 bytes per pixel; see
``tests/test_pseudo/test_codec.py``). zlib's checksum covers everything, the name of the image too,
so that a damaged file cannot be read as another map, nor the file of one image as that of another.
"""

import json
import zlib
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from mmdmt.pseudo.quantization import expansion_table, quantize

MAGIC = b'mmdmt-pl'
FORMAT_VERSION = 2
MAX_LEVELS = 8192
#: Pixels of the largest image that Pillow opens; a map that says more is not unpacked.
MAX_PIXELS = 178_956_970
_MAX_HEADER_BYTES = 1 << 14


class PseudoLabelError(RuntimeError):
    """Stored pseudo-labels cannot be used; it is no fault of the images."""


class DamagedMapError(PseudoLabelError):
    """Bytes that are no complete pseudo-label map, or not the one that was stored."""


def encode_map(label: np.ndarray, confidence: np.ndarray, name: str = '') -> bytes:
    """Pack label (H, W) uint8 and confidence (H, W) in [0, 1] of an image into bytes of a file.

    Raises:
        ValueError: If types or shapes do not fit, or a confidence is not in [0, 1].
    """
    label, confidence = np.asarray(label), np.asarray(confidence)
    if label.dtype != np.uint8 or label.ndim != 2 or label.size == 0:
        raise ValueError(f'`label` must be (H, W) uint8, got {label.dtype} {label.shape}')
    if label.size > MAX_PIXELS:
        raise ValueError(f'`label` has {label.size} pixels, {MAX_PIXELS} are the most')
    if confidence.shape != label.shape:
        raise ValueError(f'`confidence` must be {label.shape} as `label`, got {confidence.shape}')
    if not (confidence.min() >= 0 and confidence.max() <= 1):  # also true for NaN
        raise ValueError(
            f'`confidence` must be in [0, 1], got {confidence.min()} to {confidence.max()}; NaN '
            'means that the network that labels has diverged'
        )
    classes = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    levels = _levels(len(classes))
    number = np.zeros(256, np.uint16)
    number[classes] = np.arange(len(classes)) * levels
    code = number[label] + quantize(confidence, levels)
    header = dict(shape=list(label.shape), classes=classes.tolist(), name=name)
    return _join(header, _byte_planes(_differences(code)))


def decode_map(data: bytes, name: Optional[str] = None) -> Tuple[np.ndarray, np.ndarray]:
    """Label (H, W) uint8 and confidence (H, W) float32 in [0, 1] of the bytes of a file.

    Raises:
        DamagedMapError: If the bytes are not complete, damaged, of another format, or of another
            image than the one of this name.
    """
    header, planes = _split(data)
    if name is not None and header.get('name', name) != name:  # maps of before have no name
        raise DamagedMapError(f'it is the map of {header["name"]!r}')
    shape, classes = header['shape'], header['classes']
    code = _sums(_from_byte_planes(planes, shape))
    levels = _levels(len(classes))
    label = np.repeat(np.array(classes, np.uint8), levels)
    confidence = np.tile(expansion_table(levels), len(classes))
    return label[code], confidence[code]


def _levels(num_classes: int) -> int:
    return min(MAX_LEVELS, 65536 // num_classes)


def _join(header: Dict[str, Any], planes: bytes) -> bytes:
    text = json.dumps(dict(version=FORMAT_VERSION, **header)).encode()
    # Differences hardly ever repeat as strings: looking for runs only is five times faster than
    # zlib's default and costs a tenth of the size.
    deflate = zlib.compressobj(strategy=zlib.Z_RLE)
    return MAGIC + deflate.compress(text + b'\n' + planes) + deflate.flush()


def _split(data: bytes) -> Tuple[Dict[str, Any], bytes]:
    """Header and pixels; what zlib's checksum lets pass is what was written.

    No more is unpacked than the header says, so that a small file cannot fill the memory.
    """
    if not data.startswith(MAGIC):
        raise DamagedMapError('it does not begin as a pseudo-label map')
    inflate = zlib.decompressobj()
    try:
        text, _, planes = inflate.decompress(data[len(MAGIC) :], _MAX_HEADER_BYTES).partition(b'\n')
        header = json.loads(text)
        size = 2 * _pixels(header)
        planes += inflate.decompress(inflate.unconsumed_tail, max(1, size - len(planes) + 1))
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise DamagedMapError(f'its content is not complete or damaged ({error})') from error
    if not inflate.eof or len(planes) != size:
        raise DamagedMapError(f'its content is not complete or damaged (not {size} bytes)')
    return header, planes


def _pixels(header: Dict[str, Any]) -> int:
    """Number of pixels of a map, from a header that makes sense."""
    if header['version'] != FORMAT_VERSION:
        raise DamagedMapError(
            f'it has format version {header["version"]}, this mmdmt reads {FORMAT_VERSION}'
        )
    height, width = header['shape']
    if not 0 < height * width <= MAX_PIXELS or not 0 < len(header['classes']) <= 256:
        raise ValueError(f'shape {header["shape"]}, {len(header["classes"])} classes')
    return height * width


def _differences(code: np.ndarray) -> np.ndarray:
    """Second difference of uint16 (H, W), modulo 2^16, small values of either sign first."""
    code = np.diff(code, axis=0, prepend=np.zeros_like(code[:1]))
    code = np.diff(code, axis=1, prepend=np.zeros_like(code[:, :1])).view(np.int16)
    return ((code << 1) ^ (code >> 15)).view(np.uint16)


def _sums(difference: np.ndarray) -> np.ndarray:
    """Inverse of :func:`_differences`."""
    sign = (~(difference & 1) + np.uint16(1)).astype(np.uint16)  # 0 or all bits
    code = np.cumsum((difference >> 1) ^ sign, axis=1, dtype=np.uint16)
    return np.cumsum(code, axis=0, dtype=np.uint16)


def _byte_planes(values: np.ndarray) -> bytes:
    """All low bytes, then all high bytes (nearly all 0) of uint16 values."""
    return (values & 0xFF).astype(np.uint8).tobytes() + (values >> 8).astype(np.uint8).tobytes()


def _from_byte_planes(planes: bytes, shape: List[int]) -> np.ndarray:
    low, high = np.frombuffer(planes, np.uint8).reshape(2, *shape)
    return low | (high.astype(np.uint16) << 8)
