"""How files of this repository were made. Not in the wheel; nothing in the package imports it."""
