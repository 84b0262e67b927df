"""Videos to train and evaluate on: the dataset, the files that hold it, and its batches."""
