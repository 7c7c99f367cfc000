"""An index into a dataset that carries the seed of its augmentation."""


class SeededIndex(int):
    """An ``int`` with the seed that the augmentation of this very draw starts from.

    It travels through batch samplers and to loader workers like any index, so the augmentation of
    a sample depends on the draw alone: not on the number of workers, nor on where a run was cut.
    """

    seed: int  # non-negative, below 2**64

    def __new__(cls, value: int, seed: int) -> 'SeededIndex':
        """Make the int, which cannot be done later, and note the seed."""
        index = super().__new__(cls, value)
        index.seed = seed
        return index

    def __getnewargs__(self) -> tuple[int, int]:  # for pickling to the workers
        return int(self), self.seed

    def __repr__(self) -> str:
        return f'SeededIndex({int(self)}, seed={self.seed})'
