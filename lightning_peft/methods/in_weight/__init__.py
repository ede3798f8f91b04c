"""Updates that live in a weight, for layers whose forward is not the product with their weight.

The code that reads a weight (`F.linear(x, self.qkv.weight)`, the attention of torch, a convolution
that pads in its own way, a layer that standardises its weight) gets ``W + dW`` from a property of a
subclass that is made for the layer. The parameter ``W`` keeps its place and its name.
"""
