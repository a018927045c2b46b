"""Errors of the stages that a user, a file or a device can cause. The command line prints them without a traceback."""

from __future__ import annotations

from data.errors import did_you_mean as did_you_mean  # the stages take it from here


class PipelineError(Exception):
    """Base of every error of this package."""


class SettingError(PipelineError, ValueError):
    """A setting that is out of range, unknown, or contradicts another one."""


class TeacherError(PipelineError, ValueError):
    """A teacher that cannot be loaded, or that answers with numbers nobody can learn from."""


class TeacherNotFound(TeacherError):
    """No teacher of that name can be had here."""


class WeakTeacher(PipelineError, ValueError):
    """A teacher whose answers are near chance, or go by other class names than the labels."""


class OutOfMemory(PipelineError):
    """A batch that does not fit into the memory of the device."""


class OutputExists(PipelineError, FileExistsError):
    """An output that would be overwritten."""


class RunError(PipelineError, ValueError):
    """A run folder or model file that is not what it should be."""


class OverBudget(PipelineError, ValueError):
    """A student whose exported file is larger than the budget, or that takes longer for an image."""


class CourseError(PipelineError, ValueError):
    """A course server that does not do what is asked of it, or a token, address or file that it would not take."""


def first_line(error: Exception) -> str:
    """The first line of what another library said, or the kind of its error where it said nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says so: CUDA has a class for it, MPS and CPU have only words."""
    import torch

    words = ("out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)


def is_encodable(text: str) -> bool:
    """Whether text can be written as UTF-8; a lone surrogate, from a name of other bytes or an escape, cannot."""
    return text.encode(errors="ignore").decode() == text
