"""Ready LightningDataModules, and the augmentation, sampling and splitting that they share."""
