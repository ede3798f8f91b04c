"""How the weights of ``glyph_vit`` were trained, from rendering the glyphs to the model card."""
