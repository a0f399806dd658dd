"""Planted truth: nets whose class circuits are known by construction, and images for them."""

from pathways.planted.network import ROLES
from pathways.planted.planting import Planted, planted

__all__ = ["ROLES", "Planted", "planted"]
