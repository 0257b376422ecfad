"""What a teacher tells: a live model's word, or what was kept of it."""

from kd_teachers.cached import Cached
from kd_teachers.live import Live
from kd_teachers.own_base import OwnBase
from kd_teachers.server.client import Client, TeacherLost
from kd_teachers.server.served import Served
from kd_teachers.several import Several
from kd_teachers.signal import Needs, Signal
from kd_teachers.teacher import Teacher, check_needs, live_models

__all__ = ["Cached", "Client", "Live", "Needs", "OwnBase", "Served", "Several", "Signal", "Teacher",
           "TeacherLost", "check_needs", "live_models"]  # fmt: skip
