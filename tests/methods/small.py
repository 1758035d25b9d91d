"""Heads small enough for a test, for every method."""

SMALL_HEADS = {
    "simsiam": {"projector_dim": 32, "predictor_hidden": 16},
    "byol": {"projector_hidden": 24, "projector_dim": 16, "predictor_hidden": 24},
    "simclr": {"projector_dim": 16},
    "mocov2": {"projector_dim": 16, "queue_length": 40},
    "dino": {"hidden": 24, "bottleneck": 16, "output_dim": 32, "teacher_temperature": 0.04},
}
