import pytest
import torch
import torchvision.transforms.v2.functional as TF


@pytest.fixture(scope="session")
def photos():
    """Two real photographs, uint8 2 x 3 x 224 x 224."""
    from skimage import data

    pictures = [torch.from_numpy(picture).permute(2, 0, 1) for picture in (data.astronaut(), data.coffee())]
    return torch.stack([TF.resize(TF.center_crop(p, [400, 400]), [224, 224], antialias=True) for p in pictures])
