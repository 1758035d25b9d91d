"""The figures that a test draws."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, to look into."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", _keeping(figures, Figure.savefig))
    return figures


def _keeping(figures, savefig):
    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return savefig(figure, *args, **kwargs)

    return keep
