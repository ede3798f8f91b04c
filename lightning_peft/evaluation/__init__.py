"""Quality and cost of a model: metrics, calibration, intervals, FLOPs and bytes."""
