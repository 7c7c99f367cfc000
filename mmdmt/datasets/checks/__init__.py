"""Finding everything that is wrong with the data before training does."""
