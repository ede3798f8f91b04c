"""Ready data modules, one file each."""
