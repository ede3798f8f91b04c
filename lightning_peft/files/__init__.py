"""An adapter or a checkpoint as data: how it is written, read, and checked before it is trusted."""
