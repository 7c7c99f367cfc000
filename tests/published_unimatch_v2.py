"""The network of UniMatch V2 in its published layout, in plain operations: any size of encoder."""

import math
import zlib

import torch
import torch.nn.functional as F


def value(key, shape):
    """A weight that follows from its name, as the golden values of this network take them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if len(shape) > 1 and 'embed' not in key and 'token' not in key:
        return x / math.sqrt(math.prod(shape[1:]))
    if key.endswith('.gamma'):
        return 0.5 + 0.1 * x
    if key.endswith(('norm.weight', 'norm1.weight', 'norm2.weight')):
        return 1 + 0.1 * x
    return 0.1 * x


def layout(width, blocks, channels, projected, gated=0, classes=21):
    """Names and shapes; ``gated`` is the number of hidden channels of a gated network (ViT-g)."""
    shapes = {
        'backbone.cls_token': (1, 1, width),
        'backbone.pos_embed': (1, 37 * 37 + 1, width),
        'backbone.mask_token': (1, width),
    }

    def layer(name, *shape, bias=True):
        shapes[f'{name}.weight'] = shape
        if bias:
            shapes[f'{name}.bias'] = shape[:1]

    layer('backbone.patch_embed.proj', width, 3, 14, 14)
    hidden = dict(w12=(2 * gated, width), w3=(width, gated))
    if not gated:
        hidden = dict(fc1=(4 * width, width), fc2=(width, 4 * width))
    for block in (f'backbone.blocks.{index}' for index in range(blocks)):
        for number in (1, 2):
            layer(f'{block}.norm{number}', width)
            shapes[f'{block}.ls{number}.gamma'] = (width,)
        layer(f'{block}.attn.qkv', 3 * width, width)
        layer(f'{block}.attn.proj', width, width)
        for name, shape in hidden.items():
            layer(f'{block}.mlp.{name}', *shape)
    layer('backbone.norm', width)
    for index, side in {0: 4, 1: 2, 3: 3}.items():
        layer(f'head.resize_layers.{index}', *[projected[index]] * 2, side, side)
    for index, count in enumerate(projected):
        layer(f'head.projects.{index}', count, width, 1, 1)
        layer(f'head.scratch.layer{index + 1}_rn', channels, count, 3, 3, bias=False)
        fusion = f'head.scratch.refinenet{index + 1}'
        layer(f'{fusion}.out_conv', channels, channels, 1, 1)
        for unit, conv in ((1, 1), (1, 2), (2, 1), (2, 2)):
            layer(f'{fusion}.resConfUnit{unit}.conv{conv}', channels, channels, 3, 3)
    layer('head.scratch.output_conv.0', channels, channels, 3, 3)
    layer('head.scratch.output_conv.2', classes, channels, 1, 1)
    return shapes


def logits(weights, image, blocks, heads):
    """Logits (1, classes, H, W) of an image (1, 3, H, W) whose sides are multiples of 14.

    ``blocks`` are the four blocks, counted from 0, that the head takes.
    """

    def weights_of(name):
        return weights[f'{name}.weight'], weights.get(f'{name}.bias')

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], *weights_of(name), eps=1e-6)

    def attention(x, name):
        qkv = F.linear(x, *weights_of(f'{name}.qkv')).unflatten(2, (3, heads, -1))
        query, key, content = qkv.permute(2, 0, 3, 1, 4)
        score = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        mixed = score.softmax(-1) @ content
        return F.linear(mixed.transpose(1, 2).flatten(2), *weights_of(f'{name}.proj'))

    def perceptron(x, name):
        if f'{name}.fc1.weight' in weights:
            return F.linear(
                F.gelu(F.linear(x, *weights_of(f'{name}.fc1'))), *weights_of(f'{name}.fc2')
            )
        gate, other = F.linear(x, *weights_of(f'{name}.w12')).chunk(2, dim=2)
        return F.linear(F.silu(gate) * other, *weights_of(f'{name}.w3'))

    def conv(x, name, **options):
        return F.conv2d(x, *weights_of(f'head.{name}'), **options)

    def resized(x, size):
        return F.interpolate(x, size=size, mode='bilinear', align_corners=True)

    def unit(x, name):
        inner = conv(x.relu(), f'{name}.conv1', padding=1)
        return x + conv(inner.relu(), f'{name}.conv2', padding=1)

    # The encoder.
    x = F.conv2d(image, *weights_of('backbone.patch_embed.proj'), stride=14)
    grid = tuple(x.shape[2:])
    place = weights['backbone.pos_embed']
    if grid != (37, 37):
        table = place[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
        scale = tuple((side + 0.1) / 37 for side in grid)
        table = F.interpolate(table, scale_factor=scale, mode='bicubic')
        place = torch.cat([place[:, :1], table.flatten(2).transpose(1, 2)], dim=1)
    x = torch.cat([weights['backbone.cls_token'], x.flatten(2).transpose(1, 2)], dim=1) + place
    taps = []
    for index in range(max(blocks) + 1):
        name = f'backbone.blocks.{index}'
        x = x + weights[f'{name}.ls1.gamma'] * attention(norm(x, f'{name}.norm1'), f'{name}.attn')
        x = x + weights[f'{name}.ls2.gamma'] * perceptron(norm(x, f'{name}.norm2'), f'{name}.mlp')
        if index in blocks:
            taps.append(norm(x, 'backbone.norm')[:, 1:].transpose(1, 2).unflatten(2, grid))
    # The head.
    maps = [conv(tap, f'projects.{index}') for index, tap in enumerate(taps)]
    for index, stride in {0: 4, 1: 2}.items():
        kernel = weights_of(f'head.resize_layers.{index}')
        maps[index] = F.conv_transpose2d(maps[index], *kernel, stride=stride)
    maps[3] = conv(maps[3], 'resize_layers.3', stride=2, padding=1)
    maps = [conv(each, f'scratch.layer{n}_rn', padding=1) for n, each in enumerate(maps, 1)]
    x = torch.zeros_like(maps[3])
    for level in (4, 3, 2, 1):
        name, own = f'scratch.refinenet{level}', maps[level - 1]
        x = own if level == 4 else x + unit(own, f'{name}.resConfUnit1')
        x = unit(x, f'{name}.resConfUnit2')
        finer = maps[level - 2].shape[2:] if level > 1 else [2 * side for side in x.shape[2:]]
        x = conv(resized(x, finer), f'{name}.out_conv')
    x = conv(conv(x, 'scratch.output_conv.0', padding=1).relu(), 'scratch.output_conv.2')
    return resized(x, [14 * side for side in grid])
