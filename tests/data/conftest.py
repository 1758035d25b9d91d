import pytest

from tests.data.images import png, write_image


@pytest.fixture
def unlabeled(tmp_path):
    """A folder of ten images without labels, of values 0 to 9."""
    for value in range(10):
        write_image(tmp_path / "unlabeled" / f"{value}.png", value)
    return tmp_path / "unlabeled"


@pytest.fixture
def labeled(tmp_path):
    """A folder of two classes of ten images: ant has values 0 to 9, bee 10 to 19."""
    for value in range(20):
        write_image(tmp_path / "labeled" / ("ant" if value < 10 else "bee") / f"{value:02}.png", value)
    return tmp_path / "labeled"


@pytest.fixture
def damaged(labeled):
    """`labeled` with three unreadable files: a truncated one (3), an empty one (9) and one without an image (19)."""
    (labeled / "ant" / "03.png").write_bytes(png(3)[:50])
    (labeled / "ant" / "09.png").write_bytes(b"")
    (labeled / "bee" / "19.png").write_bytes(b"<html>not found</html>")
    return labeled
