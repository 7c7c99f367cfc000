"""Loads the images that are to be labeled."""

from typing import Any, Sequence

from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader, Dataset


class UnreadableImageError(RuntimeError):
    """An image that has to be labeled cannot be loaded."""


def image_loader(
    dataset: Any, indices: Sequence[int], batch_size: int, num_workers: int
) -> DataLoader:
    """Loader of some images of a data set, in this order.

    Args:
        dataset (BaseDataset): The images, with a test pipeline.
        indices (Sequence[int]): Which of them.
        batch_size (int): Images in a batch; the last one may have fewer.
        num_workers (int): Loader workers.

    Returns:
        DataLoader: Batches as mmengine's ``pseudo_collate`` makes them. An image that cannot be
        loaded raises :class:`UnreadableImageError`, with its name, when its batch is reached.
    """
    return DataLoader(
        _Images(dataset, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=pseudo_collate,
    )


class _Images(Dataset):
    """Part of a data set whose errors name the image: Pillow's do not."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        try:
            return self.dataset[index]
        except MemoryError:  # says nothing about the file
            raise
        except Exception as error:
            info = self.dataset.get_data_info(index)
            reason = ' '.join(str(error).split())  # OpenCV's have line breaks
            raise UnreadableImageError(
                f'{info.get("img_path", info["name"])} cannot be loaded, so that it cannot be '
                f'labeled ({type(error).__name__}: {reason}). Replace the file or take it off the '
                "list of unlabeled images; `default_hooks.dataset_check.mode='full'` finds all "
                'such files before training'
            ) from error
