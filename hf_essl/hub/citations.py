"""How the paper and the methods are called and cited."""

METHOD_NAMES = {"simsiam": "SimSiam", "byol": "BYOL", "simclr": "SimCLR", "mocov2": "MoCo v2+", "dino": "DINO"}

PAPER = r"""@inproceedings{kocyigit2023accelerating,
  title     = {Accelerating Self-Supervised Learning via Efficient Training Strategies},
  author    = {Ko{\c{c}}yi{\u{g}}it, Mustafa Taha and Hospedales, Timothy M. and Bilen, Hakan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  year      = {2023}
}"""

METHODS = {
    "simsiam": r"""@inproceedings{chen2021exploring,
  title     = {Exploring Simple Siamese Representation Learning},
  author    = {Chen, Xinlei and He, Kaiming},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021}
}""",
    "byol": r"""@inproceedings{grill2020bootstrap,
  title     = {Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning},
  author    = {Grill, Jean-Bastien and Strub, Florian and Altch{\'e}, Florent and Tallec, Corentin and others},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2020}
}""",
    "simclr": r"""@inproceedings{chen2020simple,
  title     = {A Simple Framework for Contrastive Learning of Visual Representations},
  author    = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2020}
}""",
    "mocov2": r"""@article{chen2020improved,
  title   = {Improved Baselines with Momentum Contrastive Learning},
  author  = {Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming},
  journal = {arXiv preprint arXiv:2003.04297},
  year    = {2020}
}""",
    "dino": r"""@inproceedings{caron2021emerging,
  title     = {Emerging Properties in Self-Supervised Vision Transformers},
  author    = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J{\'e}gou, Herv{\'e} and others},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2021}
}""",
}


def citations(method: str) -> str:
    """BibTeX of the paper and, where it is known, of the method."""
    return "\n\n".join([PAPER, METHODS[method]] if method in METHODS else [PAPER])
