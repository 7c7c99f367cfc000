"""Painter of small procedural landscapes with exact masks.

Numpy only, and one random generator per scene: a scene depends on nothing but that generator, so
scene 17 of a seed is the same whether ten or a thousand scenes are made. Lengths are in image
heights, with x to the right and y downwards from the upper left corner; colors are RGB in [0, 1].

The scenes are made to be hard for a handful of labels. Colors overlap between classes (dry grass
and sand, sky and water, mossy rocks and trees), classes share shapes (tent, roof, sail and fir)
and the light changes everything, so that texture, shape and surroundings have to be learned
together.
"""

from contextvars import ContextVar, copy_context
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

CLASSES = (
    'sky',
    'mountain',
    'grass',
    'sand',
    'water',
    'tree',
    'rock',
    'house',
    'tent',
    'boat',
    'balloon',
)
PALETTE = [
    [135, 190, 235],
    [128, 112, 150],
    [120, 180, 80],
    [225, 200, 130],
    [50, 105, 175],
    [25, 95, 50],
    [125, 125, 125],
    [190, 80, 60],
    [240, 150, 40],
    [95, 225, 215],
    [200, 60, 150],
]
_LABEL = {name: index for index, name in enumerate(CLASSES)}
Range = Tuple[float, float]

# Ranges of hue (wraps at 1), saturation and value; one of a material's varieties is drawn. Rare
# varieties are what a handful of labels misses.
_VARIETIES: Dict[str, List[Tuple[Range, Range, Range]]] = {
    'sky': [((0.54, 0.66), (0.15, 0.6), (0.6, 1.0))] * 3
    + [((0.9, 1.12), (0.2, 0.55), (0.7, 1.0)), ((0.5, 0.7), (0.0, 0.1), (0.5, 0.85))],
    'mountain': [
        ((0.58, 0.76), (0.1, 0.35), (0.3, 0.6)),
        ((0.02, 0.1), (0.1, 0.35), (0.3, 0.55)),
    ],
    'grass': [((0.22, 0.34), (0.4, 0.75), (0.4, 0.7))] * 3
    + [((0.1, 0.18), (0.35, 0.6), (0.45, 0.7)), ((0.78, 0.9), (0.15, 0.4), (0.45, 0.7))],
    'sand': [((0.1, 0.15), (0.25, 0.5), (0.7, 0.95))] * 2
    + [((0.03, 0.09), (0.3, 0.55), (0.5, 0.8)), ((0.1, 0.15), (0.0, 0.12), (0.75, 0.95))],
    'water': [((0.54, 0.64), (0.4, 0.8), (0.35, 0.8))] * 2
    + [((0.42, 0.52), (0.3, 0.7), (0.35, 0.75)), ((0.55, 0.65), (0.05, 0.2), (0.4, 0.65))],
    'leaves': [((0.25, 0.42), (0.4, 0.8), (0.25, 0.5))] * 3
    + [((0.02, 0.12), (0.6, 0.9), (0.45, 0.85)), ((0.88, 0.97), (0.2, 0.5), (0.6, 0.9))],
    'bark': [((0.04, 0.1), (0.3, 0.6), (0.2, 0.4))],
    'rock': [((0.05, 0.15), (0.0, 0.12), (0.3, 0.7))] * 2
    + [((0.02, 0.08), (0.2, 0.4), (0.3, 0.6)), ((0.2, 0.3), (0.15, 0.35), (0.3, 0.5))],
    'wall': [((0.08, 0.14), (0.05, 0.3), (0.8, 1.0))] * 2
    + [((0.0, 0.05), (0.4, 0.65), (0.5, 0.75)), ((0.5, 0.65), (0.1, 0.35), (0.6, 0.9))],
    'roof': [((0.0, 0.06), (0.5, 0.8), (0.35, 0.65))] * 2
    + [((0.55, 0.7), (0.0, 0.2), (0.2, 0.4)), ((0.3, 0.4), (0.3, 0.5), (0.25, 0.5))],
    'tent': [((0.05, 0.15), (0.7, 0.95), (0.7, 1.0))] * 2
    + [((0.55, 0.65), (0.5, 0.8), (0.5, 0.9)), ((0.25, 0.38), (0.4, 0.7), (0.4, 0.7))],
    'hull': [((0.0, 0.08), (0.5, 0.8), (0.25, 0.6)), ((0.55, 0.7), (0.2, 0.7), (0.2, 0.5))],
    'sail': [((0.1, 0.15), (0.0, 0.15), (0.85, 1.0))] * 2
    + [((0.97, 1.05), (0.5, 0.8), (0.6, 0.95)), ((0.55, 0.62), (0.2, 0.5), (0.7, 0.95))],
    'envelope': [((0.0, 1.0), (0.6, 0.95), (0.7, 1.0))],
    'stripe': [((0.0, 1.0), (0.0, 0.9), (0.7, 1.0))],
    'glass': [((0.5, 0.65), (0.2, 0.5), (0.15, 0.45)), ((0.11, 0.15), (0.4, 0.7), (0.8, 1.0))],
}


#: What the same landscapes may look like. Scenes of a clear day are easy: near things in their most
#: common colors, without haze, cloud shadows and noise.
STYLES = ('day', 'dusk', 'clear')

# How many varieties of a material there are; every painter of a scene asks for colors.
_varieties: ContextVar[Optional[int]] = ContextVar('_varieties', default=None)


def paint_scene(
    rng: np.random.Generator, size: Tuple[int, int], style: str = 'day'
) -> Tuple[np.ndarray, np.ndarray]:
    """Paint one landscape.

    Args:
        rng: Source of everything random in the scene.
        size: Height and width in pixels.
        style: One of ``STYLES``. Classes and shapes are the same in all.

    Returns:
        The image, (H, W, 3) uint8 RGB, and the class of each pixel, (H, W) uint8.
    """
    painter = copy_context()
    painter.run(_varieties.set, 1 if style == 'clear' else None)
    return painter.run(_paint_scene, rng, size, style)


def _paint_scene(
    rng: np.random.Generator, size: Tuple[int, int], style: str
) -> Tuple[np.ndarray, np.ndarray]:
    canvas = Canvas(*size)
    light = Light.draw(rng)
    if style == 'clear':
        light = light._replace(haze_density=0.0)
    horizon = rng.uniform(0.25, 0.45)
    _paint_sky(canvas, rng, light)
    if rng.random() < 0.6:
        _paint_mountains(canvas, rng, light, horizon)
    _paint_ground(canvas, rng, light, horizon)
    _paint_things(canvas, rng, light, horizon, style)
    image = _develop(canvas.rgb, rng, light, style)
    return _at_dusk(image, rng) if style == 'dusk' else image, canvas.label


class Light(NamedTuple):
    """Lighting of a scene.

    Attributes:
        side: Where the sun is, from -1 (left) to 1 (right).
        tint: Color of the light, (3,).
        haze: Color of what is far away, (3,).
        haze_density: Share of haze at the horizon, 0 to 1.
    """

    side: float
    tint: np.ndarray
    haze: np.ndarray
    haze_density: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> 'Light':
        """Draw noon, evening or an overcast day."""
        warmth = rng.uniform(-1, 1)
        tint = rng.uniform(0.75, 1.1) * np.array([1 + 0.12 * warmth, 1.0, 1 - 0.15 * warmth])
        haze = _hsv(rng, (0.5, 0.68), (0.02, 0.35), (0.7, 0.95))
        return cls(rng.uniform(-1, 1), tint, haze, rng.uniform(0.0, 0.45))


class Canvas:
    """Image, mask and coordinates that the painters share; a window is a view into them.

    Args:
        height: Height in pixels.
        width: Width in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.pixel = 1 / height
        self.y, self.x = ((np.mgrid[:height, :width] + 0.5) * self.pixel).astype(np.float32)
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)

    @property
    def width(self) -> float:
        """Width of the canvas in image heights."""
        return self.x.shape[1] * self.pixel

    def window(self, left: float, top: float, right: float, bottom: float) -> 'Canvas':
        """View of a box, so that a small object costs little."""
        rows = slice(max(int(top / self.pixel), 0), max(int(np.ceil(bottom / self.pixel)), 0))
        cols = slice(max(int(left / self.pixel), 0), max(int(np.ceil(right / self.pixel)), 0))
        part = object.__new__(Canvas)
        part.pixel = self.pixel
        for name in ('x', 'y', 'rgb', 'label'):
            setattr(part, name, getattr(self, name)[rows, cols])
        return part

    def paint(
        self,
        distance: np.ndarray,
        color: np.ndarray,
        label: Optional[str] = None,
        opacity: float = 1.0,
    ) -> None:
        """Blend a color over the region of negative distance, with smooth edges.

        Args:
            distance: (H, W) signed distance to the outline, negative inside.
            color: (3,) or (H, W, 3).
            label: Class of the covered pixels; ``None`` leaves the mask as it is.
            opacity: 1 covers, less shows what lies below.
        """
        alpha = np.clip(0.5 - distance / self.pixel, 0, 1)
        self.rgb += (alpha * opacity)[..., None] * (color - self.rgb)
        if label is not None:
            self.label[alpha > 0.5] = _LABEL[label]


class Thing(NamedTuple):
    """An object to paint.

    Attributes:
        name: Its class.
        x: Middle of its foot.
        y: Ground it stands on; what is nearer lies lower in the image and covers it.
        height: Height in image heights.
        haze: Share of haze before it, 0 to 1.
    """

    name: str
    x: float
    y: float
    height: float
    haze: float


# --- noise, colors, outlines -------------------------------------------------------------------


def _fbm(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, octaves: int = 3) -> np.ndarray:
    """Fractal value noise in about [-1, 1] at the given coordinates (one lattice cell per unit)."""
    lattice = rng.uniform(-1, 1, (64, 64)).astype(np.float32)
    total, amplitude = np.zeros(u.shape, np.float32), 1.0
    for _ in range(octaves):
        shift = rng.uniform(0, 64, 2).astype(np.float32)
        total += amplitude * _value_noise(lattice, u + shift[0], v + shift[1])
        u, v, amplitude = u * 2.03, v * 2.03, amplitude * 0.55
    return total / 1.2


def _value_noise(lattice: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smoothly interpolated look-up in a periodic 64x64 lattice."""
    cell_u, cell_v = np.floor(u), np.floor(v)
    s, t = u - cell_u, v - cell_v
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    i, j = cell_v.astype(np.int32) & 63, cell_u.astype(np.int32) & 63
    i1, j1 = (i + 1) & 63, (j + 1) & 63
    upper = lattice[i, j] + (lattice[i, j1] - lattice[i, j]) * s
    lower = lattice[i1, j] + (lattice[i1, j1] - lattice[i1, j]) * s
    return upper + (lower - upper) * t


def _hsv(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> np.ndarray:
    """Random RGB color from ranges of hue (wraps at 1), saturation and value."""
    h, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    ramps = np.clip(np.abs((h * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return v * (1 - s + s * ramps)


def _material(rng: np.random.Generator, name: str) -> np.ndarray:
    """Color of a piece of a material, (3,)."""
    varieties = _VARIETIES[name][: _varieties.get()]
    return _hsv(rng, *varieties[rng.integers(len(varieties))])


def _shade(color: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Color times a (H, W) brightness, never below a tenth."""
    return color * np.maximum(factor, 0.1)[..., None]


def _ellipse(c: Canvas, x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Approximate signed distance to an ellipse."""
    return (np.hypot((c.x - x) / rx, (c.y - y) / ry) - 1) * min(rx, ry)


def _polygon(c: Canvas, points: Sequence[Tuple[float, float]]) -> np.ndarray:
    """Signed distance to a convex polygon given clockwise on the screen."""
    edges = zip(points, [*points[1:], points[0]])
    sides = [
        ((c.x - x0) * (y1 - y0) - (c.y - y0) * (x1 - x0)) / max(np.hypot(x1 - x0, y1 - y0), 1e-9)
        for (x0, y0), (x1, y1) in edges
    ]
    return np.max(sides, axis=0)


def _box(c: Canvas, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Signed distance to an upright rectangle."""
    return _polygon(c, [(left, top), (right, top), (right, bottom), (left, bottom)])


# --- surroundings ------------------------------------------------------------------------------


def _paint_sky(c: Canvas, rng: np.random.Generator, light: Light) -> None:
    """Vertical gradient to the haze color, and clouds."""
    top = _material(rng, 'sky')
    blend = np.clip(c.y * rng.uniform(1.5, 3), 0, 1)[..., None]
    color = top * (1 - blend) + light.haze * blend
    cloud = _fbm(rng, c.x * 3, c.y * rng.uniform(6, 12), 4) + rng.uniform(-0.6, 0.4)
    cover = np.clip(cloud * 2, 0, 0.9)[..., None]
    white = np.full(3, rng.uniform(0.75, 1.0))
    c.paint(np.full_like(c.x, -1.0), color * (1 - cover) + white * cover, 'sky')


def _paint_mountains(c: Canvas, rng: np.random.Generator, light: Light, horizon: float) -> None:
    """One or two ragged ridges, paler with distance."""
    base = _material(rng, 'mountain')
    ridges = rng.integers(1, 3)
    for ridge in range(ridges):
        rise = rng.uniform(0.08, 0.25) * (1 - 0.4 * ridge)
        crest = _fbm(rng, c.x * rng.uniform(2, 4), np.zeros_like(c.x), 4)
        top = horizon - rise * (0.6 + 0.7 * crest)
        grain = _fbm(rng, c.x * 14 + c.y * 10, c.y * 14, 3)
        far = 0.55 - 0.3 * ridge
        color = _shade(base, 1 + 0.45 * grain) * (1 - far) + light.haze * far
        snow = (top - c.y + rise * rng.uniform(-0.2, 0.35) + 0.03 * grain)[..., None]
        color = np.where(snow > 0, 0.9 + 0.1 * grain[..., None], color)
        c.paint(top - c.y, color, 'mountain')


def _paint_ground(c: Canvas, rng: np.random.Generator, light: Light, horizon: float) -> None:
    """One to three bands of ground from the horizon to the viewer, with crooked borders."""
    bands = rng.permutation(['grass', 'sand', 'water'])[: rng.choice([1, 2, 3], p=[0.2, 0.5, 0.3])]
    border = horizon
    for number, kind in enumerate(bands):
        slope, wobble = rng.uniform(-0.25, 0.25), 0.05 * number
        edge = border + (slope * (c.x - c.width / 2) * (number > 0))
        edge = edge + wobble * _fbm(rng, c.x * 3, np.zeros_like(c.x))
        depth = np.maximum(c.y - horizon, 0.0) + 0.03
        color = _GROUND[kind](rng, (c.x - c.width / 2) / depth, 1 / depth)
        far = (light.haze_density * 0.06 / depth)[..., None]
        c.paint(edge - c.y, color * (1 - far) + light.haze * far, str(kind))
        border += rng.uniform(0.15, 0.45) * (1 - border)


def _grass(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Patchy meadow with upright blades, green to straw."""
    lush, dry = _material(rng, 'grass'), _material(rng, 'grass')
    patch = np.clip(0.5 + 0.7 * _fbm(rng, u * 0.8, v * 0.4) + rng.uniform(-0.7, 0.1), 0, 1)
    blades = _fbm(rng, u * 9, v * 2.2, 2)
    return _shade(lush * (1 - patch[..., None]) + dry * patch[..., None], 1 + 0.45 * blades)


def _sand(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Dunes with fine grain, pale yellow to brown."""
    color = _material(rng, 'sand')
    dunes = np.sin(v * rng.uniform(1, 2.5) + 1.8 * _fbm(rng, u * 0.7, v * 0.5) + u)
    return _shade(color, 1 + 0.1 * dunes + 0.18 * _fbm(rng, u * 12, v * 6, 2))


def _water(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Flat ripples and glints, blue to green and gray."""
    color = _material(rng, 'water')
    waves = _fbm(rng, u * 1.2, v * rng.uniform(4, 7), 3)
    glint = np.clip(waves - 0.45, 0, 1)[..., None] * rng.uniform(0.5, 1.6)
    return np.clip(_shade(color, 1 + 0.3 * waves) + glint, 0, 1)


_GROUND: Dict[str, Callable[..., np.ndarray]] = {'grass': _grass, 'sand': _sand, 'water': _water}


# --- things ------------------------------------------------------------------------------------


def _paint_things(
    c: Canvas, rng: np.random.Generator, light: Light, horizon: float, style: str
) -> None:
    """Place objects, far ones first, each where its kind belongs (with some exceptions)."""
    things = _place_things(c, rng, light, horizon)
    if style == 'clear':
        things = [thing._replace(height=1.5 * thing.height) for thing in things]
    for thing in sorted(things, key=lambda thing: thing.y):
        box = 1.3 * thing.height
        part = c.window(thing.x - box, thing.y - box, thing.x + box, thing.y + 0.25 * box)
        if not part.x.size:
            continue
        before = part.rgb.copy()
        if thing.name != 'balloon':
            _paint_shadow(part, thing, light)
        _THINGS[thing.name](part, rng, thing, light)
        changed = (part.rgb != before).any(-1, keepdims=True)
        part.rgb += changed * thing.haze * (light.haze - part.rgb)


def _place_things(c: Canvas, rng: np.random.Generator, light: Light, horizon: float) -> List[Thing]:
    """Draw kinds and places: boats on water, balloons in the sky, the rest on land."""
    things = []
    for _ in range(rng.integers(4, 8)):
        x, nearness = rng.uniform(0.02, c.width - 0.02), rng.uniform(0.1, 0.95)
        y = horizon + nearness * (1 - horizon)
        ground = CLASSES[c.label[min(int(y / c.pixel), c.label.shape[0] - 1), int(x / c.pixel)]]
        kinds = ['boat', 'boat', 'rock'] if ground == 'water' else _LAND
        name = str(rng.choice(kinds))
        height = _HEIGHT[name] * (0.22 + 0.5 * nearness) * rng.uniform(0.75, 1.3)
        things.append(Thing(name, x, y, height, light.haze_density * (1 - nearness) ** 2))
    for _ in range(rng.choice([0, 1, 2], p=[0.3, 0.45, 0.25])):
        height = rng.uniform(0.18, 0.42)
        y = rng.uniform(0.4 * height, horizon + 0.1)
        things.append(Thing('balloon', rng.uniform(0.05, c.width - 0.05), y, height, 0.0))
    return things


def _paint_shadow(c: Canvas, thing: Thing, light: Light) -> None:
    """Soft dark patch at the foot, on the side away from the sun."""
    size = thing.height
    x = thing.x - light.side * 0.25 * size
    c.paint(_ellipse(c, x, thing.y, 0.5 * size, 0.09 * size), np.zeros(3), opacity=0.35)


def _side_light(c: Canvas, thing: Thing, light: Light, strength: float = 0.7) -> np.ndarray:
    """Brightness rising toward the sun across an object."""
    return 1 + strength * light.side * (c.x - thing.x) / thing.height


def _tree(c: Canvas, rng: np.random.Generator, thing: Thing, light: Light) -> None:
    """Trunk under a clumpy crown, round or pointed."""
    h, x, foot = thing.height, thing.x, thing.y
    bark = _material(rng, 'bark')
    width = h * rng.uniform(0.03, 0.07)
    c.paint(_box(c, x - width, foot - 0.6 * h, x + width, foot), bark, 'tree')
    clumps = _fbm(rng, c.x / h * 9, c.y / h * 9, 3)
    color = _shade(_material(rng, 'leaves'), _side_light(c, thing, light) + 0.55 * clumps)
    if rng.random() < 0.4:
        half, skirt = h * rng.uniform(0.18, 0.3), foot - 0.22 * h
        crown = _polygon(c, [(x, foot - h), (x + half, skirt), (x - half, skirt)])
    else:
        crown = _ellipse(c, x, foot - 0.66 * h, h * rng.uniform(0.24, 0.4), 0.36 * h)
    c.paint(crown + 0.05 * h * clumps, color, 'tree')


def _rock(c: Canvas, rng: np.random.Generator, thing: Thing, light: Light) -> None:
    """Rounded boulder with a flat foot, facets and cracks; gray, brown or mossy."""
    h = thing.height
    color = _material(rng, 'rock')
    bumps = _fbm(rng, c.x / h * 3, c.y / h * 3, 3)
    cracks = np.abs(_fbm(rng, c.x / h * 4, c.y / h * 4, 2)) < 0.08
    outline = _ellipse(c, thing.x, thing.y - 0.3 * h, h * rng.uniform(0.5, 0.8), 0.62 * h)
    outline = np.maximum(outline + 0.13 * h * bumps, c.y - thing.y)
    factor = _side_light(c, thing, light) + 0.5 * np.round(bumps * 3) / 3 - 0.35 * cracks
    c.paint(outline, _shade(color, factor), 'rock')


def _house(c: Canvas, rng: np.random.Generator, thing: Thing, light: Light) -> None:
    """Walls with windows and a door below a gabled roof."""
    h, x, foot = thing.height, thing.x, thing.y
    half, eaves = h * rng.uniform(0.4, 0.75), foot - h * rng.uniform(0.45, 0.6)
    wall, roof = _material(rng, 'wall'), _material(rng, 'roof')
    lit = _shade(wall, _side_light(c, thing, light, 0.4))
    c.paint(_box(c, x - half, eaves, x + half, foot), lit, 'house')
    courses = 1 + 0.12 * np.sign(np.sin((c.y - foot) / h * 60))
    ridge, eave = 0.55 * half, 1.15 * half
    gable = [(x - ridge, foot - h), (x + ridge, foot - h), (x + eave, eaves), (x - eave, eaves)]
    c.paint(_polygon(c, gable), _shade(roof, courses), 'house')
    glass = _material(rng, 'glass')
    pane, middle = 0.09 * h, (eaves + foot) / 2
    for left in (x - 0.55 * half, x + 0.55 * half):
        c.paint(_box(c, left - pane, middle - pane, left + pane, middle + pane), glass)
    c.paint(_box(c, x - 0.07 * h, middle - 0.02 * h, x + 0.07 * h, foot), roof * 0.6)


def _tent(c: Canvas, rng: np.random.Generator, thing: Thing, light: Light) -> None:
    """Ridge tent: a lit and a dark slope, an open flap, sometimes stripes."""
    h, x, foot = thing.height, thing.x, thing.y
    half, lean = h * rng.uniform(0.55, 0.85), h * rng.uniform(-0.2, 0.2)
    cloth = _material(rng, 'tent')
    fold = 1 - 0.3 * np.sign(c.x - x - lean) * np.sign(light.side)
    if rng.random() < 0.4:
        fold = fold + 0.2 * np.sign(np.sin((c.x - x) / h * 25))
    outline = _polygon(c, [(x + lean, foot - h), (x + half, foot), (x - half, foot)])
    c.paint(outline, _shade(cloth, fold), 'tent')
    flap = h * rng.uniform(0.08, 0.22)
    opening = [(x + lean, foot - 0.7 * h), (x + flap, foot), (x - flap, foot)]
    c.paint(_polygon(c, opening), cloth * 0.2)


def _boat(c: Canvas, rng: np.random.Generator, thing: Thing, light: Light) -> None:
    """Mast and sail over a hull."""
    h, x, foot = thing.height, thing.x, thing.y
    half, deck, mast = h * rng.uniform(0.4, 0.65), foot - 0.2 * h, 0.02 * h
    hull, sail = _material(rng, 'hull'), _material(rng, 'sail')
    cloth = _shade(sail, _side_light(c, thing, light, 0.5) + 0.06 * np.sin(c.y / h * 40))
    tip, foot_of_mast = (x, foot - h), (x, deck - 0.04 * h)
    if rng.random() < 0.5:
        triangle = [tip, foot_of_mast, (x - 0.9 * half, deck - 0.08 * h)]
    else:
        triangle = [tip, (x + 0.9 * half, deck - 0.08 * h), foot_of_mast]
    c.paint(_polygon(c, triangle), cloth, 'boat')
    c.paint(_box(c, x - mast, foot - h, x + mast, deck), hull * 0.4, 'boat')
    bow, keel = half, 0.7 * half
    c.paint(
        _polygon(c, [(x - bow, deck), (x + bow, deck), (x + keel, foot), (x - keel, foot)]),
        hull,
        'boat',
    )
    c.paint(_box(c, x - bow, deck, x + bow, deck + 0.05 * h), hull * 0.6)


def _balloon(c: Canvas, rng: np.random.Generator, thing: Thing, light: Light) -> None:
    """Striped envelope with a basket; the thing's y is the basket's floor."""
    h, x, foot = thing.height, thing.x, thing.y
    first, second = _material(rng, 'envelope'), _material(rng, 'stripe')
    middle, radius = foot - 0.62 * h, 0.38 * h
    bulge = np.sqrt(np.clip(1 - ((c.y - middle) / (1.02 * radius)) ** 2, 0.05, 1))
    gores = np.sin((c.x - x) / (radius * bulge) * rng.uniform(4, 9)) > 0
    color = np.where(gores[..., None], first, second)
    color = _shade(color, _side_light(c, thing, light, 0.9))
    wicker = _material(rng, 'bark')
    c.paint(_box(c, x - 0.07 * h, foot - 0.12 * h, x + 0.07 * h, foot), wicker, 'balloon')
    wide, top, narrow, bottom = 0.28 * h, foot - 0.4 * h, 0.05 * h, foot - 0.14 * h
    skirt = [(x - wide, top), (x + wide, top), (x + narrow, bottom), (x - narrow, bottom)]
    c.paint(_polygon(c, skirt), color, 'balloon')
    c.paint(_ellipse(c, x, middle, radius, radius), color, 'balloon')


_THINGS: Dict[str, Callable[..., None]] = {
    'tree': _tree,
    'rock': _rock,
    'house': _house,
    'tent': _tent,
    'boat': _boat,
    'balloon': _balloon,
}
_LAND = ['tree', 'tree', 'rock', 'house', 'tent']
_HEIGHT = {'tree': 1.0, 'rock': 0.6, 'house': 0.85, 'tent': 0.65, 'boat': 0.8}


# --- camera ------------------------------------------------------------------------------------


def _develop(rgb: np.ndarray, rng: np.random.Generator, light: Light, style: str) -> np.ndarray:
    """Light, cloud shadows, blur and sensor noise, to 8 bits."""
    height, width = rgb.shape[:2]
    y, x = np.mgrid[:height, :width] / height
    shadow = 1 - rng.uniform(0, 0.4) * np.clip(_fbm(rng, x * 1.6, y * 1.6, 2) * 2, 0, 1)
    if style == 'clear':
        return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
    rgb = rgb * light.tint * shadow[..., None]
    rgb = _blur(rgb, rng.uniform(0.0, 0.5))
    rgb = np.clip(rgb, 0, 1) ** rng.uniform(0.75, 1.3)
    rgb = rgb + rng.normal(0, rng.uniform(0.005, 0.03), rgb.shape)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def _at_dusk(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Little, violet light with a warm glow from one side, and the noise of a long exposure."""
    height, width = image.shape[:2]
    rgb = (image / 255) ** rng.uniform(1.1, 1.4)
    rgb = rgb * rng.uniform(0.45, 0.7) * np.array([0.85, 0.75, 1.15])
    glow = np.abs(np.arange(width) / width - rng.integers(0, 2))[None, :, None]
    low = (np.arange(height) / height)[:, None, None]
    rgb = rgb + rng.uniform(0.05, 0.2) * glow**2 * (1 - low) * np.array([1.0, 0.5, 0.2])
    rgb = rgb + rng.normal(0, 0.02, rgb.shape)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blur(rgb: np.ndarray, amount: float) -> np.ndarray:
    """Mix each pixel with its four neighbors; ``amount`` is the neighbors' share, 0 to 1."""
    padded = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), mode='edge')
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return (1 - amount) * rgb + amount * around / 4
