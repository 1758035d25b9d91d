"""How the paper and the methods are cited."""

from hf_essl.methods import METHODS

PAPER = r"""@inproceedings{kocyigit2023accelerating,
  title     = {Accelerating Self-Supervised Learning via Efficient Training Strategies},
  author    = {Ko{\c{c}}yi{\u{g}}it, Mustafa Taha and Hospedales, Timothy M. and Bilen, Hakan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  year      = {2023}
}"""


def citations(method: str) -> str:
    """BibTeX of the paper and, for a known method, of the method."""
    return "\n\n".join([PAPER, METHODS[method].citation] if method in METHODS else [PAPER])


def method_title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method
