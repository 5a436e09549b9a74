"""The small encoder in the teacher's place: shapes, resizing, and no teacher in sight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from semhitok.model import SemHiTok, TokenizerConfig
from semhitok.model.config import StudentConfig, TransformerConfig
from semhitok.model.student import Student


@pytest.fixture
def student_config(tiny_config: TokenizerConfig) -> TokenizerConfig:
    student = StudentConfig(transformer=TransformerConfig(width=16, depth=1, heads=2))
    semantic = dataclasses.replace(tiny_config.semantic, trunk="student", student=student)
    return dataclasses.replace(tiny_config, semantic=semantic)


@pytest.fixture
def student(student_config: TokenizerConfig) -> Student:
    assert student_config.semantic.student is not None
    torch.manual_seed(0)
    return Student(student_config.semantic.student, student_config.semantic.teacher)


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (2, 6)])
def test_features_of_the_teachers_width_on_any_grid(
    student: Student, tiny_config: TokenizerConfig, grid: tuple[int, int]
) -> None:
    images = torch.rand(2, 3, 8 * grid[0], 8 * grid[1])
    assert student(images, grid).shape == (2, *grid, tiny_config.semantic.teacher.dim)


def test_pictures_of_other_sizes_are_resized_to_the_grid(student: Student) -> None:
    images = torch.rand(1, 3, 32, 48)
    large = torch.nn.functional.interpolate(images, (64, 96), mode="bicubic", antialias=True)
    small = torch.nn.functional.interpolate(large, (32, 48), mode="bicubic", antialias=True)
    assert student(large, (4, 6)).equal(student(small, (4, 6)))


def test_pictures_are_normalised_as_the_teachers(student: Student) -> None:
    images = torch.rand(1, 3, 16, 16)
    shifted = Student.__new__(Student)
    shifted.__dict__.update(student.__dict__ | {"_buffers": dict(student._buffers)})
    shifted.mean, shifted.std = torch.full((3, 1, 1), 0.25), torch.full((3, 1, 1), 0.25)
    expected = student(images, (2, 2))
    assert torch.allclose(shifted(images / 2, (2, 2)), expected, atol=1e-5)
    assert not torch.allclose(shifted(images, (2, 2)), expected, atol=1e-3)


def test_all_of_a_student_learns(student: Student) -> None:
    student(torch.rand(2, 3, 16, 16), (2, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_a_tokenizer_with_a_student_has_no_teacher(
    student_config: TokenizerConfig, make_tokenizer: Callable[..., SemHiTok]
) -> None:
    model = make_tokenizer(student_config)
    assert isinstance(model.semantic.trunk, Student)
    assert not any("trunk.trunk" in name for name in model.state_dict())
    ids = model.encode(torch.rand(2, 3, 32, 48))
    assert ids.shape == (2, 4, 6) and model.decode(ids).shape == (2, 3, 32, 48)
    assert model.semantic_features(ids).shape == (2, 4, 6, student_config.semantic.teacher.dim)
