"""Finding the learning rate by short runs on parts of the training data."""
