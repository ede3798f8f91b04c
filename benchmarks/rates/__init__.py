"""Learning rates of the methods on eight pretrained networks."""
