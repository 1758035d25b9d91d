"""What surrounds a training step: its order, the optimizer, callbacks, the log, checkpoints, alarms, trackers."""
