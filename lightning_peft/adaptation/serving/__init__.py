"""An adapted model after training: exported, averaged, switched, predicting."""
