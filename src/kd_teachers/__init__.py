"""What a teacher tells: a live model's word, or what was kept of it."""

from kd_teachers.live import Live
from kd_teachers.teacher import Needs, Signal, Teacher, check_needs

__all__ = ["Live", "Needs", "Signal", "Teacher", "check_needs"]
