"""What an image goes through."""

from semhitok.model.codebook import HierarchicalCodebook, Quantized, SemanticCodebook
from semhitok.model.config import TeacherConfig, TokenizerConfig
from semhitok.model.pixel import fit_linear_paths, perturb_pixel_codes, warm_start
from semhitok.model.teacher import Teacher
from semhitok.model.tiles import Tiling
from semhitok.model.tokenizer import SemHiTok

__all__ = [
    "HierarchicalCodebook",
    "Quantized",
    "SemHiTok",
    "SemanticCodebook",
    "Teacher",
    "TeacherConfig",
    "Tiling",
    "TokenizerConfig",
    "fit_linear_paths",
    "perturb_pixel_codes",
    "warm_start",
]
