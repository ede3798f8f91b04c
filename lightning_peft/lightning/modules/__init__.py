"""Ready LightningModules."""
