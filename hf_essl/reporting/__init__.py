"""What a run shows: its pictures, its report, and runs beside each other."""
