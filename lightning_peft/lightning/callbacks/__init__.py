"""The callbacks, one file each."""
