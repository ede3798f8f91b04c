"""How good a model is, and what it costs: metrics, calibration, intervals, FLOPs and bytes."""
