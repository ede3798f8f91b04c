"""The small pretrained backbone that ships with the package, and how it was made."""
