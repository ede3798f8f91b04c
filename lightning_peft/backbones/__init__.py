"""The small pretrained backbone that ships with the package; ``tools/glyph_vit`` made it.

``import lightning_peft`` is enough for ``timm.create_model("glyph_vit", pretrained=True)``.
Importing this package brings in neither torch nor timm.
"""
