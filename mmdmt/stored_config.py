"""Read the config text in a checkpoint without running it."""

import ast
from typing import Any

from mmengine.config import Config


def read_stored_config(text: str) -> Config:
    """Read the config that mmengine stores in ``meta['cfg']`` of a checkpoint.

    It is Python text. mmengine's reader executes it, which would undo what loading with
    ``weights_only`` is for. What a runner writes consists of assignments of plain values, so only
    those are read.

    Args:
        text: The text (``Config.pretty_text``).

    Returns:
        The config.

    Raises:
        ValueError: The text holds anything but ``name = value`` with plain values.
    """
    try:
        statements = ast.parse(text).body
        return Config(dict(_assignment(statement) for statement in statements))
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f'the config stored in the checkpoint cannot be read as plain values: {error}. '
            'Name the config file instead.'
        ) from error


def _assignment(statement: ast.stmt) -> tuple:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, _value(statement.value)
    raise ValueError(f'line {statement.lineno} is no assignment to a name')


def _value(node: ast.expr) -> Any:
    """A literal, in which ``dict(key=value)`` and ``dict({...})`` also occur."""
    if isinstance(node, ast.Call):
        return _dict_call(node)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    return ast.literal_eval(node)


def _dict_call(node: ast.Call) -> dict:
    named = all(keyword.arg is not None for keyword in node.keywords)
    if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or not named:
        raise ValueError(f'line {node.lineno} calls something else than dict()')
    result = {}
    for argument in node.args:
        result.update(_value(argument))
    result.update((keyword.arg, _value(keyword.value)) for keyword in node.keywords)
    return result
