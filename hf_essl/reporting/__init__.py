"""What a run shows: its pictures, its report, and comparisons of several runs."""
